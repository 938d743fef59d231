"""Calling a function in a child process that can be killed.

Video decoders hang inside native code that ignores signals and may hold Python's lock; no thread or
alarm ends them. A child process and SIGKILL do. One child serves many calls, because starting Python costs
seconds; after a kill or a crash the next call starts a new one.

The child is started by command line rather than by `multiprocessing`, so that user scripts need no
`if __name__ == "__main__"` and the child's environment is complete before its first import.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar

from hpdm_core.errors import EnvironmentProblem

_READY = b"ready"

P = ParamSpec("P")
R = TypeVar("R")


class DeadlineExceeded(Exception):
    """The call took longer than its deadline; the child was killed."""


class ChildDied(Exception):
    """The child ended by itself: a crash in native code, or the kernel's out-of-memory killer."""


class WorkerLost(Exception):
    """The worker itself is gone, with its child: what the child wrote last may or may not be on the disk."""


class Worker(Protocol):
    """What calls functions somewhere else, from one thread."""

    def call(self, function: Callable[P, R], deadline: float | None, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `IsolatedWorker`; may also raise WorkerLost, and start anew with the next call."""
        ...

    def close(self) -> None:
        """End it; a call that waits ends with an error."""
        ...


class IsolatedWorker:
    """One child process, for use from one thread, as a context manager.

    `environment` is added to the child's variables. `module` is imported as the child starts, so that
    its import does not count against a call's deadline.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, module: str = __name__) -> None:
        self._environment = dict(environment or {})
        self._module = module
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker

    def call(self, function: Callable[P, R], deadline: float | None, *args: P.args, **kwargs: P.kwargs) -> R:
        """`function(*args, **kwargs)` in the child: a module-level function, arguments that pickle.

        Raises what the function raises, DeadlineExceeded after `deadline` seconds (None: never), ChildDied, or
        EnvironmentProblem where no child can be started.
        """
        child = self._start()
        expired = threading.Event()

        def kill() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(deadline, kill) if deadline is not None else None
        if timer is not None:
            timer.start()
        try:
            succeeded, value = self._exchange(child, (function, args, kwargs))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            self.close()
            if expired.is_set():
                raise DeadlineExceeded(f"no answer within {deadline:g} s") from None
            raise ChildDied(f"exit status {child.returncode}; {self._last_words()}") from error
        except BaseException:  # Ctrl-C while waiting: leave no child behind
            self.close()
            raise
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
        if expired.is_set():  # answered, and killed in the same instant
            self.close()
        if not succeeded:
            raise value
        return value

    def _exchange(self, child: subprocess.Popen[bytes], request: Any) -> tuple[bool, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(pickle.dumps(request))
        child.stdin.flush()
        return pickle.load(child.stdout)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._stderr.seek(0)
            self._stderr.truncate()
            try:
                self._child = subprocess.Popen(
                    # -P: a random.py beside the videos must not take the place of Python's own
                    [sys.executable, "-P", "-c", f"import {self._module}; from {__name__} import serve; serve()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    env={**os.environ, "PYTHONPATH": _import_path(), **self._environment},
                )
            except OSError as error:
                raise EnvironmentProblem(f"a decoding process did not start: {error}") from error
            self._await_ready(self._child)
        return self._child

    def _await_ready(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        if child.stdout.read(len(_READY)) != _READY:
            self.close()
            raise EnvironmentProblem(f"a decoding process did not start: {self._last_words()}")

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # unsent bytes for a child that is gone
                    continue

    def __enter__(self) -> IsolatedWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._stderr.close()


def _import_path() -> str:
    """This process's import path for the child; the working directory, if it is on it by the name "", goes last."""
    here = [os.getcwd()] if "" in sys.path else []
    return os.pathsep.join([*filter(None, sys.path), *here])


def serve() -> None:
    """The child's loop: answer calls from standard input until it closes."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a whole group gets them; the parent says when to end, or goes away
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what libraries print must not land among the replies
    replies.write(_READY)
    replies.flush()
    while True:
        try:
            function, args, kwargs = pickle.load(requests)
        except EOFError:
            return
        try:
            reply = (True, function(*args, **kwargs))
        except Exception as error:
            reply = (False, error)  # raised again in the parent
        replies.write(_pickled(reply))
        replies.flush()


def _pickled(reply: tuple[bool, Any]) -> bytes:
    succeeded, value = reply
    try:
        data = pickle.dumps(reply)
        if not succeeded:  # an exception may pickle and yet not come back, if its arguments are its own
            pickle.load(io.BytesIO(data))
    except Exception as error:
        what = f"the child's answer cannot be sent: {error}; {value!r}" if succeeded else repr(value)
        return pickle.dumps((False, RuntimeError(what)))
    return data
