"""Signals that end a command: they become an exception in the main thread, where that can do no harm.

Python runs a handler between any two instructions of the main thread. An exception out of it while `threading`'s own
code takes a lock leaves the lock taken, and the threads that want it wait for ever; so does whoever joins them.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from types import FrameType

REPEAT_SECONDS = 1.0
TICK_SECONDS = 0.01
PATIENCE_SECONDS = 1.0
"""A signal is put off for so long at most."""
LOCKING = frozenset({"threading", "queue", "logging", "concurrent.futures._base", "concurrent.futures.thread"})
"""Modules whose functions take locks in Python code."""
WAITING = frozenset({"wait", "join", "_wait_for_tstate_lock", "_shutdown"})
"""Those of them that wait for other threads, with nothing taken."""


class Stopped(BaseException):
    """SIGTERM or SIGHUP, by name. No Exception: on its way up nothing may take it for a failure of its own."""


class _Raise:
    """A signal handler that raises Stopped, or KeyboardInterrupt for SIGINT: `with` and `finally` blocks run."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._last = float("-inf")
        # Another's alarm is left alone; then, and without timers, signals raise at once.
        self._has_timer = hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
        self._put_off: int | None = None
        self._since = 0.0
        self._place: tuple[int, int] | None = None
        if self._has_timer:
            signal.signal(signal.SIGALRM, self._again)
            atexit.register(self._close)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise, in the process that installed the handler; among locks, look again in a moment."""
        if os.getpid() != self._process:  # a forked worker: it ends as it would without a handler
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        now = time.monotonic()
        if self._put_off is None:
            self._since = now
        if self._has_timer and now - self._since < PATIENCE_SECONDS and self._takes_locks(frame):
            self._put_off = number if self._put_off is None else self._put_off  # the first is the cause
            signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS)
            return
        number = self._taken() or number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        # `timeout` signals the process and then its group; the second would cut short what the first set off.
        if now - self._last >= REPEAT_SECONDS:
            self._last = now
            raise Stopped(signal.Signals(number).name)

    def _takes_locks(self, frame: FrameType | None) -> bool:
        """Whether the thread may be taking a lock: not if it stands where it stood before, waiting for others."""
        if frame is None or frame.f_globals.get("__name__") not in LOCKING:
            return False
        before, self._place = self._place, (id(frame), frame.f_lasti)
        return before != self._place or frame.f_code.co_name not in WAITING

    def _taken(self) -> int | None:
        """The signal that was put off, no longer so."""
        number, self._put_off, self._place = self._put_off, None, None
        if number is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        return number

    def _again(self, alarm: int, frame: FrameType | None) -> None:
        """At the timer's signal: what was put off, for whoever hears it by now."""
        number = self._put_off
        if number is None:
            return
        if signal.getsignal(number) is self:
            self(number, frame)
        else:
            self._taken()
            signal.raise_signal(number)

    def _close(self) -> None:
        """At exit: no timer may outlive its handler, whose default ends the process."""
        self._has_timer = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def raise_on_signals() -> None:
    """Let SIGTERM, SIGHUP and SIGINT raise, unless the caller had them ignored. Training has a handler of its own.

    A rank keeps the default: it may be waiting for others in native code, where no handler runs, and its launcher
    speaks for it.
    """
    if "RANK" in os.environ:
        return
    handler = _Raise()
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, handler)
