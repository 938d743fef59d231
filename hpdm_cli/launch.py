"""`--nproc N`: the same command in N processes on this machine, through torchrun's own agent.

Arguments, config and data are checked before any process starts, so a usage error appears once. The exit
code is that of the first process to fail; the agent itself would always answer 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import typer

from hpdm_cli import console
from hpdm_core.errors import ConfigError, EnvironmentProblem, RankLost, StoppedOnRequest

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SAVE_SECONDS = 600
GLOBAL_FLAGS = ("traceback", "verbose")
"""Flags of `hpdm` itself, which ranks are given too."""


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks, as a launcher's environment says; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def command_line(context: typer.Context, *left_out: str) -> list[str]:
    """The words of the running command without `--nproc` and the parameters `left_out`: what ranks are started with."""
    root = context.find_root()
    words = [f"--{name}" for name in GLOBAL_FLAGS if root is not context and root.params.get(name)]
    return [*words, str(context.info_name), *given_words(context, "nproc", *left_out)]


def given_words(context: typer.Context, *left_out: str) -> list[str]:
    """Arguments and options of the running command that are not their defaults, without the parameters `left_out`."""
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in left_out or value is None or value == parameter.default:
            continue
        option = [parameter.opts[0]] if parameter.param_type_name == "option" else []
        if isinstance(value, bool):
            words += option
        else:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += [*option, str(item)]
    return words


def launch(args: Sequence[str], num_processes: int, device: str | None) -> int:
    """Run `hpdm ARGS` in `num_processes` ranks and return the exit code that the command should have.

    Raises ConfigError inside another launcher, EnvironmentProblem for more processes than GPUs.
    """
    _check(num_processes, device)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from hpdm_core.training.guard import heard_signals

    _silence_agent()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    os.environ[console.LAUNCHED] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in heard_signals())
    # Ranks that were asked to stop are saving a checkpoint: versions that can wait longer than 30 s shall.
    patience: dict[str, Any] = (
        {"shutdown_timeout": SAVE_SECONDS} if "shutdown_timeout" in signature(LaunchConfig).parameters else {}
    )
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        **patience,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "hpdm_cli", *args)
    except ChildFailedError as error:
        return _root_cause(error)
    except SignalException as error:
        console.print_note(f"stopped: {error.sigval.name} was passed on to every rank")
        return StoppedOnRequest.exit_code
    return 0


def _root_cause(error: ChildFailedError) -> int:
    """Name the rank that failed first, where it could not do so itself, and return its exit code."""
    # Ranks that lost another one, or were ended because of it, are consequences.
    consequences = (RankLost.exit_code, -signal.SIGTERM)
    failures = sorted(error.failures.items(), key=lambda item: (item[1].exitcode in consequences, item[1].timestamp))
    rank, failure = failures[0]
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        memory = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
        console.print_note(f"error: rank {rank} was killed by {name}{memory}")
        console.print_note("hint: run the same command again to continue")
        return 1
    return failure.exitcode


def _silence_agent() -> None:
    """Hide the agent's own forty lines: the ranks have said what went wrong. It sets a level on each logger."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _check(num_processes: int, device: str | None) -> None:
    if "WORLD_SIZE" in os.environ:
        raise ConfigError("--nproc was given inside a distributed launcher", hint="leave --nproc away")
    if device is None or device == "auto" or device.startswith("cuda"):
        import torch

        found = torch.cuda.device_count()
        if num_processes > found and (found or device not in (None, "auto")):
            raise EnvironmentProblem(
                f"--nproc {num_processes} needs as many GPUs, and this machine has {found}",
                hint="lower --nproc, or use --device cpu",
            )
