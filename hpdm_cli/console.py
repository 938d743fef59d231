"""What the terminal shows: results as plain stdout, everything else on stderr, drawn by rank 0 only.

User text never passes through rich's markup, which would swallow `[val]` out of a path.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol

from hpdm_core.data.disk import naming
from hpdm_core.errors import HpdmError, RankLost, StoppedOnRequest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

HEARTBEAT_SECONDS = 30.0
READER_GONE = 128 + 13
"""Exit code where stdout was closed before its end: what a shell makes of SIGPIPE."""
LAUNCHED = "HPDM_LAUNCHED"
"""Set in the environment of ranks that `--nproc` started."""


def rank() -> int:
    """This process's rank in a distributed run; 0 outside one."""
    return int(os.environ.get("RANK", "0"))


def on_terminal() -> bool:
    """Whether stderr, where progress is drawn, is a terminal."""
    return sys.stderr.isatty()


@cache
def stderr_console() -> Console:
    """The rich console for progress and logs. No markup, no highlighting of numbers in paths."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


class _Results(TextIOWrapper):
    """stdout. Where nobody reads it any more, as after `| head`, the program ends: no word, exit code READER_GONE."""

    def write(self, text: str, /) -> int:
        """Write `text`, or end the program."""
        try:
            with naming("standard output"):
                return super().write(text)
        except BrokenPipeError:
            raise self._drop() from None

    def flush(self) -> None:
        """Flush, or end the program."""
        try:
            with naming("standard output"):
                super().flush()
        except BrokenPipeError:
            raise self._drop() from None

    def _drop(self) -> SystemExit:
        """What is still to be written on the way out goes nowhere."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        return SystemExit(READER_GONE)


class _Remarks(TextIOWrapper):
    """stderr. What a closed pipe or a full disk does not take is lost, and the work goes on."""

    def write(self, text: str, /) -> int:
        """Write what can be written."""
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            super().flush()


def make_streams_safe() -> None:
    """Make stdout and stderr survive a closed or full other side, and escape what the terminal's encoding lacks."""
    for name, kind in (("stdout", _Results), ("stderr", _Remarks)):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as `2>&-` does
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            setattr(sys, name, kind(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True))


def print_result(text: str) -> None:
    """Write a result to stdout, as is, from rank 0."""
    if rank() == 0:
        print(text, flush=True)


def print_note(text: str) -> None:
    """Write a remark to stderr, as is, from rank 0."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)


def print_once(text: str) -> None:
    """Write a remark like `print_note`; ranks that `--nproc` started are silent, for their launcher has made it."""
    if LAUNCHED not in os.environ or "RANK" not in os.environ:
        print_note(text)


def print_error(error: HpdmError) -> None:
    """Write an error and its remedy to stderr; in a distributed run, say which rank met it.

    Of ranks that `--nproc` started, those that only lost another one claim no error: the launcher names that one.
    """
    if isinstance(error, RankLost) and LAUNCHED in os.environ:
        print_note(str(error))
        return
    kind = "stopped" if isinstance(error, StoppedOnRequest) else "error"
    who = f" (rank {rank()})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(f"{kind}{who}: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def print_traceback() -> None:
    """Write the traceback of the exception being handled to stderr."""
    traceback.print_exc(file=sys.stderr)


def setup_logging(*, verbose: bool = False) -> None:
    """Send the library's log records to stderr: INFO from rank 0, warnings from all.

    `verbose` adds DEBUG. HPDM_LOG_ALL_RANKS=1 lets every rank speak.
    """
    if on_terminal():
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=stderr_console(), show_path=False, markup=False, highlighter=NullHighlighter(), keywords=[]
        )
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="%H:%M:%S"))
    else:
        handler = logging.StreamHandler()
        who = f"rank {rank()} " if "RANK" in os.environ else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(levelname)s %(message)s"))
    speaks = rank() == 0 or os.environ.get("HPDM_LOG_ALL_RANKS") == "1"
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for package in ("hpdm_core", "hpdm_cli"):
        level = logging.DEBUG if verbose else logging.INFO
        logging.getLogger(package).setLevel(level if speaks else logging.WARNING)
    logging.captureWarnings(True)


class Progress(Protocol):
    """A running count. `notes` are short facts shown beside it, such as `loss=0.31`."""

    def update(self, done: float, *, total: float | None = None, **notes: Any) -> None:
        """Set how much is done, and the total if it has become known or has changed."""
        ...

    def advance(self, amount: float = 1, **notes: Any) -> None:
        """Add `amount` to what is done."""
        ...


@contextmanager
def progress(
    what: str, total: float | None = None, *, unit: str = "", heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> Iterator[Progress]:
    """Show a count with rate and ETA while the block runs: a bar on a terminal, JSON lines elsewhere.

    Off a terminal one JSON object goes to stderr at the first update, then every `heartbeat_seconds`, and
    at the end: keys `event`, `what`, `done`, `total`, `unit`, `per_s`, `elapsed_s`, `eta_s` and the notes.
    Other ranks than 0 show nothing.
    """
    if rank() != 0:
        yield _Silent()
    elif on_terminal():
        with _rich_progress(unit) as bars:
            yield _Bar(bars, bars.add_task(what, total=total, notes=""))
    else:
        heartbeat = _Heartbeat(what, total, unit, heartbeat_seconds)
        try:
            yield heartbeat
        finally:
            heartbeat.write("progress_end")


class _Silent:
    """Progress of a rank that does not draw."""

    def update(self, done: float, *, total: float | None = None, **notes: Any) -> None:
        """Show nothing."""

    def advance(self, amount: float = 1, **notes: Any) -> None:
        """Show nothing."""


class _Bar:
    """Progress as a rich bar."""

    def __init__(self, bars: RichProgress, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def update(self, done: float, *, total: float | None = None, **notes: Any) -> None:
        """Move the bar to `done`."""
        changes: dict[str, Any] = {"notes": _joined(notes)} if notes else {}
        if total is not None:
            changes["total"] = total
        self.bars.update(self.task, completed=done, **changes)

    def advance(self, amount: float = 1, **notes: Any) -> None:
        """Move the bar by `amount`."""
        self.update(self.bars.tasks[self.bars.task_ids.index(self.task)].completed + amount, **notes)


class _Heartbeat:
    """Progress as JSON lines on stderr."""

    def __init__(self, what: str, total: float | None, unit: str, every: float) -> None:
        self.what, self.total, self.unit, self.every = what, total, unit, every
        self.done: float = 0
        self.notes: dict[str, Any] = {}
        self.start = time.monotonic()
        self.last = float("-inf")

    def update(self, done: float, *, total: float | None = None, **notes: Any) -> None:
        """Note where things stand, and write a line if one is due."""
        self.done, self.notes = done, {**self.notes, **notes}
        self.total = self.total if total is None else total
        if time.monotonic() - self.last >= self.every:
            self.write("progress")

    def advance(self, amount: float = 1, **notes: Any) -> None:
        """Add `amount`, and write a line if one is due."""
        self.update(self.done + amount, **notes)

    def write(self, event: str) -> None:
        """Write one line now."""
        self.last = time.monotonic()
        elapsed = self.last - self.start
        rate = self.done / elapsed if elapsed > 0 else 0.0
        left = None if self.total is None or rate == 0 else max(self.total - self.done, 0) / rate
        line = {
            "event": event,
            "what": self.what,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "per_s": round(rate, 3),
            "elapsed_s": round(elapsed, 1),
            "eta_s": None if left is None else round(left, 1),
            **self.notes,
        }
        print(json.dumps(line, default=str), file=sys.stderr, flush=True)


def _rich_progress(unit: str) -> RichProgress:
    """Rich's progress with the columns that fit most terminals."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Units per second, or seconds per unit where that is slower."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(_rate(speed, unit), style="progress.data.speed")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[notes]}", markup=False),
        console=stderr_console(),
    )


def _rate(speed: float | None, unit: str) -> str:
    """`3.2 clips/s`, or `4.1 s/step` below one in a second."""
    if not speed:
        return ""
    if speed >= 1 or not unit:
        return f"{speed:.1f} {unit}/s" if unit else f"{speed:.1f}/s"
    return f"{1 / speed:.1f} s/{unit.removesuffix('s')}"


def _joined(notes: dict[str, Any]) -> str:
    """Notes as `key=value` words; short floats."""
    return " ".join(f"{key}={v:.4g}" if isinstance(v, float) else f"{key}={v}" for key, v in notes.items())
