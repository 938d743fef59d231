"""Signals raise in the main thread, wherever it stands, and never while it holds a lock in Python's own code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals and timers as POSIX has them")

START = """
import concurrent.futures, os, queue, signal, threading, time
from hpdm_cli import stopping
stopping.REPEAT_SECONDS = 0.0
stopping.raise_on_signals()

def signalled_after(seconds, number):
    thread = threading.Thread(target=lambda: (time.sleep(seconds), os.kill(os.getpid(), number)), daemon=True)
    thread.start()
    return thread
"""

LOCKED = """
left_taken = 0
for trial in range(150):
    condition = threading.Condition(threading.Lock())
    sender = signalled_after(0.0005, signal.SIGTERM)
    try:
        while True:
            with condition:
                pass
    except stopping.Stopped:
        left_taken += not condition.acquire(blocking=False)
    sender.join()
print("left taken:", left_taken)
"""

WAITING = """
pool = concurrent.futures.ThreadPoolExecutor(1)
waits = {
    "event": threading.Event().wait,
    "queue": queue.Queue().get,
    "simple": queue.SimpleQueue().get,
    "lock": lambda: (lock := threading.Lock()).acquire() and lock.acquire(),
    "condition": lambda: (condition := threading.Condition()).acquire() and condition.wait(),
    "future": lambda: pool.submit(time.sleep, 3).result(),
    "join": lambda: (thread := threading.Thread(target=time.sleep, args=(3,), daemon=True)).start() or thread.join(),
    "sleep": lambda: time.sleep(3),
    "work": lambda: sum(i for i in range(10**9)),
}
for name, wait in waits.items():
    for number, kind in ((signal.SIGHUP, stopping.Stopped), (signal.SIGINT, KeyboardInterrupt)):
        started = time.monotonic()
        sender = signalled_after(0.1, number)
        try:
            wait()
            print(name, "came back")
        except kind:
            late = time.monotonic() - started > 1.5
            print(name, number.name, "late" if late else "raised")
        sender.join()
os._exit(0)
"""


LATER = """
import logging, sys
from hpdm_core.training.guard import StopRequest

def put_off(number, handler=signal.getsignal(signal.SIGTERM)):
    \"\"\"As if the signal had come while a lock was taken.\"\"\"
    frame = type("Frame", (), {"f_globals": {"__name__": "threading"}, "f_lasti": 0,
                               "f_code": type("Code", (), {"co_name": "__enter__"})})
    handler(number, frame)

def outcome(act):
    started = time.monotonic()
    try:
        act()
        kind = "nothing"
    except (stopping.Stopped, KeyboardInterrupt) as end:
        kind = f"{type(end).__name__}({end})"
    return kind, "late" if time.monotonic() - started > 2.5 else "in time"

def held(lock):
    with lock:
        time.sleep(5)

# A lock that somebody keeps: patience ends.
output = logging.StreamHandler()
thread = threading.Thread(target=held, args=(output.lock,), daemon=True)
thread.start()
time.sleep(0.1)
signalled_after(0.1, signal.SIGTERM)
print(*outcome(lambda: output.handle(logging.makeLogRecord({}))))
# The first signal is the cause, and nothing comes after what was raised for it.
def both():
    put_off(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
print(*outcome(both))
print(*outcome(lambda: time.sleep(0.2)))
# Who listens by now hears what was put off.
request = StopRequest()
def listen():
    put_off(signal.SIGTERM)
    with request.listening():
        time.sleep(0.2)
print(*outcome(listen), request.reason)
# An alarm that is not ours means nothing; a timer does not outlive the handler.
print(*outcome(lambda: (os.kill(os.getpid(), signal.SIGALRM), time.sleep(0.1))))
import atexit
atexit.register(lambda: time.sleep(0.3))
stopping.TICK_SECONDS = 0.5
put_off(signal.SIGTERM)
"""

EXIT = """
threading.Thread(target=time.sleep, args=(20,)).start()
signalled_after(0.3, signal.SIGTERM)
"""


def run(code: str) -> list[str]:
    env = {k: v for k, v in os.environ.items() if k != "RANK"}

    def settle() -> None:  # as a terminal's program has them, whatever the tests were started with
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "-u", "-c", START + code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, preexec_fn=settle)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_no_lock_is_left_taken() -> None:
    """The signal comes while a condition is entered and left as fast as can be, 150 times."""
    assert run(LOCKED) == ["left taken: 0"]


def test_whoever_waits_is_woken() -> None:
    lines = run(WAITING)
    assert len(lines) == 18
    assert all(line.endswith("raised") for line in lines), lines


def test_what_is_put_off_comes_once_in_time_and_to_whoever_listens() -> None:
    assert run(LATER) == [
        "Stopped(SIGTERM) in time",
        "Stopped(SIGTERM) in time",
        "nothing in time",
        "nothing in time received SIGTERM",
        "nothing in time",
    ]


def test_threads_that_are_still_at_work_do_not_keep_a_stopped_program() -> None:
    started = time.monotonic()
    run(EXIT)
    assert time.monotonic() - started < 15
