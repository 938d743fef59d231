"""Signals raise in the main thread, wherever it stands, and never while it holds a lock in Python's own code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

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


def run(code: str) -> list[str]:
    env = {k: v for k, v in os.environ.items() if k != "RANK"}

    def settle() -> None:  # as a terminal's program has them, whatever the tests were started with
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

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
