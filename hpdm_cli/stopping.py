"""Signals that end a command: they become an exception in the main thread, where that can do no harm.

Python runs a handler between any two instructions of the main thread. An exception out of it while `threading`'s own
code takes a lock leaves the lock taken, and the threads that want it wait for ever; so does whoever joins them.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

REPEAT_SECONDS = 1.0
TICK_SECONDS = 0.01
LOCKING = frozenset({"threading", "queue", "logging", "concurrent.futures._base", "concurrent.futures.thread"})
"""Modules whose functions take locks in Python code."""
WAITING = frozenset({"wait", "join", "_wait_for_tstate_lock"})
"""Those of them that wait for other threads, with nothing taken."""


class Stopped(BaseException):
    """SIGTERM or SIGHUP, by name. No Exception: on its way up nothing may take it for a failure of its own."""


class _Raise:
    """A signal handler that raises Stopped, or KeyboardInterrupt for SIGINT: `with` and `finally` blocks run."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._last = float("-inf")
        self._put_off = signal.SIGTERM
        self._place: tuple[int, int] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise, in the process that installed the handler; among locks, look again in a moment."""
        if os.getpid() != self._process:  # a forked worker: it ends as it would without a handler
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        if frame is not None and frame.f_globals.get("__name__") in LOCKING and self._moves(frame):
            self._put_off = signal.Signals(number)
            signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS)
            return
        self._place = None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        # `timeout` signals the process and then its group; the second would cut short what the first set off.
        now = time.monotonic()
        if now - self._last >= REPEAT_SECONDS:
            self._last = now
            raise Stopped(signal.Signals(number).name)

    def again(self, number: int, frame: FrameType | None) -> None:
        """What was put off, at the timer's signal."""
        self(self._put_off, frame)

    def _moves(self, frame: FrameType) -> bool:
        """False where the thread waits for others: it stands where it stood at the last look, and may be woken."""
        before, self._place = self._place, (id(frame), frame.f_lasti)
        return before != self._place or frame.f_code.co_name not in WAITING


def raise_on_signals() -> None:
    """Let SIGTERM, SIGHUP and SIGINT raise, unless the caller had them ignored. Training has a handler of its own.

    A rank keeps the default: it may be waiting for others in native code, where no handler runs, and its launcher
    speaks for it.
    """
    if "RANK" in os.environ or not hasattr(signal, "setitimer"):
        return
    handler = _Raise()
    signal.signal(signal.SIGALRM, handler.again)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, handler)
