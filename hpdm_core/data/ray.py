"""`prepare-data --engine ray`: clips are made by worker processes of a Ray cluster.

RAY_ADDRESS names the cluster; without it Ray starts on this machine. Sources and store lie on a file system that all
its nodes see under the same paths, and `hpdm` is installed on them. A worker holds the same killable child as a local
one, so decoders that hang or crash are treated alike; the loss of a worker costs the shard it was making, which
begins anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from hpdm_core.data.backends import CHILD_ENVIRONMENT
from hpdm_core.data.clip import prepare_clips
from hpdm_core.data.isolate import IsolatedWorker, Worker, WorkerLost
from hpdm_core.errors import EnvironmentProblem

logger = logging.getLogger(__name__)

ADDRESS = "RAY_ADDRESS"
OBJECT_STORE_BYTES = 100 * 2**20  # jobs and accounts are all that travels; frames go straight to the store

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def ray_crew(workers: int | None, most: int) -> Iterator[list[Worker]]:
    """At most `most` workers, one per core of the cluster (None, 0) or `workers`; Ray is left as it was found.

    Raises EnvironmentProblem where Ray is not installed or no cluster answers.
    """
    ray = _imported()
    running = ray.is_initialized()
    if not running:
        _start(ray, workers)
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        yield [RayWorker(ray) for _ in range(min(workers or cores, cores, most))]
    finally:
        if not running:
            ray.shutdown()


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EnvironmentProblem(
            f"--engine ray needs the package ray: {error}", hint="pip install 'hpdm[ray]', or use --engine local"
        ) from error
    return ray


def _start(ray: Any, workers: int | None) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if os.environ.get(ADDRESS):
            ray.init(**quiet)
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here: dict[str, Any] = {"num_cpus": workers or None, "object_store_memory": OBJECT_STORE_BYTES}
        ray.init(address="local", include_dashboard=False, **here, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"no Ray cluster answers: {error}", hint=f"check {ADDRESS}, or unset it to start Ray on this machine"
        ) from error


class RayWorker:
    """One worker process of the cluster, started with the first call, and again after it was lost."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._actor: Any = None

    def call(self, function: Callable[P, R], deadline: float | None, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `IsolatedWorker.call`; raises WorkerLost besides."""
        ray = self._ray
        try:
            if self._actor is None:
                self._actor = ray.remote(num_cpus=1)(_Remote).remote()
                logger.info("ray worker %d started", ray.get(self._actor.process_id.remote()))
            succeeded, value = ray.get(self._actor.call.remote(function, deadline, args, kwargs))
        except ray.exceptions.RayTaskError:  # not the loss of a worker: a bug
            raise
        except ray.exceptions.RayError as error:
            self.close()
            raise WorkerLost(f"a ray worker was lost ({str(error).splitlines()[0]})") from error
        if not succeeded:
            raise value
        return value

    def close(self) -> None:
        """End the process, if there is one."""
        actor, self._actor = self._actor, None
        if actor is not None:
            self._ray.kill(actor)


class _Remote:
    """What runs in the worker process. Errors are returned: Ray would raise them as classes of its own."""

    def __init__(self) -> None:
        self._child = IsolatedWorker(CHILD_ENVIRONMENT, prepare_clips.__module__)

    def process_id(self) -> int:
        return os.getpid()

    def call(
        self, function: Callable[..., Any], deadline: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bool, Any]:
        try:
            return True, self._child.call(function, deadline, *args, **kwargs)
        except Exception as error:
            return False, error
