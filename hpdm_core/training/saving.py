"""When checkpoints are written: at once, or from a copy in host memory while training goes on.

What a checkpoint is and how it is written stays in checkpoint.py; here is only the thread. The step that saves pays for
a copy of the state to host memory; hashing, syncing and renaming happen behind it. One write is under way at a time,
on a process group of its own, so its messages never meet those of training.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.distributed.checkpoint.staging import BlockingAsyncStager

from hpdm_core.errors import StoppedOnRequest
from hpdm_core.training.checkpoint import Contents, prune, save_checkpoint
from hpdm_core.training.distributed import World

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes checkpoints of one run and keeps the newest `keep`; a context manager, left when all are on disk.

    `background`: copy and return; the next `save`, `check` or the end of the block raise what went wrong.
    """

    def __init__(self, run: Path, world: World, keep: int, *, background: bool) -> None:
        self._run, self._world, self._keep = run, world, keep
        self._background = background
        # Pinned and reused on a GPU: the copy then runs at the speed of the bus.
        self._stager = BlockingAsyncStager(cache_staged_state_dict=world.device.type == "cuda")
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, contents: Contents, best: int = 0) -> None:
        """Write a checkpoint, all ranks together; the one of step `best` is kept too. Raises CheckpointError."""
        self.wait()
        if not self._background:
            self._write(contents, best)
            return
        copied: Any = self._stager.stage({"tensors": dict(contents.tensors), "weights": dict(contents.weights)})
        self._thread = threading.Thread(
            target=self._try_to_write, args=(contents.with_tensors(**copied), best), name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a write that has failed by now."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the write that is under way, and raise its error."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _try_to_write(self, contents: Contents, best: int) -> None:
        try:
            self._write(contents, best)
        except BaseException as error:  # raised again by the training loop
            self._error = error

    def _write(self, contents: Contents, best: int) -> None:
        path = save_checkpoint(self._run, contents, self._world)
        if self._world.main:
            prune(self._run, self._keep, contents.step, best=best)
            logger.info("checkpoint %s", path)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None or isinstance(value, StoppedOnRequest):
            self.wait()
        elif isinstance(value, Exception):
            try:
                self.wait()
            except Exception as error:  # of the two, `value` is the one to tell of
                what = type(error).__name__
                logger.warning("the checkpoint that was being written is lost (%s); the one before it stands", what)
        # A second Ctrl-C waits for nothing; what is half written has no final name.
