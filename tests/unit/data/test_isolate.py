"""Calls in a child process that can be killed."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from hpdm_core.data.isolate import ChildDied, DeadlineExceeded, IsolatedWorker
from hpdm_core.errors import CorruptVideo, EnvironmentProblem


def fail(reason: str) -> None:
    raise CorruptVideo("no good", reason=reason, hint="try another")


def chatter() -> str:
    print("on stdout")
    os.write(1, b"straight to descriptor 1\n")
    return "answer"


def unpicklable() -> object:
    return lambda: None


def variable(name: str) -> str | None:
    return os.environ.get(name)


def test_one_child_answers_many_calls() -> None:
    with IsolatedWorker({"COLOUR": "teal"}) as child:
        first = child.call(os.getpid, None)
        assert first != os.getpid()
        assert child.call(math.hypot, 10, 3, 4) == 5
        assert child.call(variable, 10, name="COLOUR") == "teal"
        assert child.call(chatter, 10) == "answer"
        assert child.call(os.getpid, 10) == first


def test_errors_come_back_whole() -> None:
    with IsolatedWorker() as child:
        with pytest.raises(CorruptVideo, match="no good") as caught:
            child.call(fail, 10, "truncated")
        assert (caught.value.reason, caught.value.hint) == ("truncated", "try another")
        with pytest.raises(RuntimeError, match="cannot be sent"):
            child.call(unpicklable, 10)
        assert child.call(math.sqrt, 10, 9) == 3


def test_a_call_past_its_deadline_is_killed_and_the_next_one_works() -> None:
    with IsolatedWorker() as child:
        first = child.call(os.getpid, 10)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            child.call(time.sleep, 0.3, 60)
        assert time.monotonic() - start < 5
        assert child.call(os.getpid, 10) != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


def test_a_crash_is_told_from_an_error() -> None:
    with IsolatedWorker() as child:
        with pytest.raises(ChildDied, match="exit status 11"):
            child.call(os._exit, 10, 11)
        assert child.call(math.sqrt, 10, 9) == 3


def test_what_a_whole_process_group_is_sent_is_the_parents_to_answer() -> None:
    with IsolatedWorker() as child:
        first = child.call(os.getpid, 10)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(first, number)
        assert child.call(os.getpid, 10) == first


def test_the_working_directory_takes_no_modules_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a file beside the videos was imported')")
    (tmp_path / "own_decoder.py").write_text("answer = 42")
    monkeypatch.chdir(tmp_path)
    with IsolatedWorker(module="random") as child:
        assert child.call(math.sqrt, 10, 9) == 3
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "random.py").unlink()
    with IsolatedWorker(module="own_decoder") as child:
        assert child.call(math.sqrt, 10, 9) == 3


def test_a_child_that_cannot_start_is_the_machines_fault() -> None:
    with IsolatedWorker(module="no_such_module") as child, pytest.raises(EnvironmentProblem, match="no_such_module"):
        child.call(math.sqrt, 10, 9)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork to check for zombies")
def test_closing_leaves_no_process() -> None:
    with IsolatedWorker() as child:
        pid = child.call(os.getpid, 10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
