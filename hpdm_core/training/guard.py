"""What may end or skip a step: non-finite numbers, signals, the clock.

The guard never waits for the device in the middle of a step. A bad update is made a no-op on the device;
the host reads each step's numbers one step later, when they have long arrived.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from hpdm_core.errors import NumericsError

logger = logging.getLogger(__name__)

MAX_SKIPPED = 100
"""Under `nonfinite: skip`, so many skipped steps in a row still end the run."""

SIGNALS = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, n))


def heard_signals() -> list[signal.Signals]:
    """The signals that end a run. Not SIGHUP where it is ignored: that is what `nohup` was asked for."""
    return [n for n in SIGNALS if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one role in one step, on their way from the device.

    `videos` are the first and last position of the batch. `host` is complete once `arrived` has happened.
    """

    role: str
    step: int
    videos: tuple[int, int]
    names: tuple[str, ...]
    host: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> dict[str, float]:
        """The numbers by name."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.host.tolist(), strict=True))


def found_inf(numbers: Tensor) -> Tensor:
    """Device scalar: 1.0 if the loss or the gradient norm, the first two `numbers`, is not finite."""
    return torch.logical_not(torch.isfinite(numbers[:2]).all()).float()


class NonfiniteGuard:
    """Keeps non-finite updates away from the weights and says which step and which part they came from."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._pending: deque[StepNumbers] = deque()
        self._skipped = 0

    def submit(self, role: str, step: int, videos: tuple[int, int], names: Sequence[str], numbers: Tensor) -> None:
        """Queue a step's `numbers`, loss and gradient norm first. Nothing waits."""
        arrived = None
        host = numbers.detach()
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            host.copy_(numbers.detach(), non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(StepNumbers(role, step, videos, tuple(names), host, arrived))

    def settle(self, before_step: int | None = None) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield (role, numbers) of the queued good steps, those before `before_step` or all.

        Raises NumericsError at a bad one, unless the policy is to skip it.
        """
        while self._pending and (before_step is None or self._pending[0].step < before_step):
            entry = self._pending.popleft()
            numbers = entry.read()
            if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
                self._skipped = 0
                yield entry.role, numbers
            else:
                self._report(entry, numbers)

    def _report(self, entry: StepNumbers, numbers: dict[str, float]) -> None:
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        what = (
            f"non-finite {', '.join(bad)} at step {entry.step}, role {entry.role!r}, "
            f"videos {entry.videos[0]}..{entry.videos[1]}"
        )
        self._skipped += 1
        if self._policy == "skip" and self._skipped < MAX_SKIPPED:
            logger.warning("%s: the step was skipped", what)
            return
        if self._policy == "skip":
            what = f"{MAX_SKIPPED} steps in a row were skipped; the last: {what}"
        raise NumericsError(
            f"training stopped: {what}; no weight was changed by it",
            hint="the last checkpoint is good: lower train.optimizer.lr, try train.precision=fp32, "
            "or set train.nonfinite=skip to step over single bad batches",
        )


class StopRequest:
    """Whether someone asked the run to end: a signal or the time limit."""

    def __init__(self, time_limit: float | None = None) -> None:
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self._limit = time_limit
        self._signal: str = ""

    @property
    def reason(self) -> str:
        """Why to stop, in words; empty while there is no reason."""
        if self._signal:
            return f"received {self._signal}"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"reached the time limit of {self._limit:g} s"
        return ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the `heard_signals` only set `reason`; a second SIGINT interrupts as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in heard_signals()}
        self._interrupt = before.get(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # The first is the cause: a launcher that was told to stop sends its ranks a SIGTERM besides.
        self._signal = self._signal or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._interrupt)
