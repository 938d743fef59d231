from __future__ import annotations

import contextlib
import io
import json
import logging
import sys

import pytest

from hpdm_cli import console


class Terminal(io.StringIO):
    """A stderr that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """A function that makes stderr a terminal; in the test itself, since pytest puts its own stderr in before."""

    def connect() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "xterm")
        console.stderr_console.cache_clear()
        return stream

    yield connect
    console.stderr_console.cache_clear()


@pytest.fixture
def _restore_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level, {n: logging.getLogger(n).level for n in ("hpdm_core", "hpdm_cli")}
    yield
    root.handlers[:], root.level = before[0], before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(False)


def test_progress_off_a_terminal_is_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("prepare", 4, unit="clips", heartbeat_seconds=1e6) as bar:
        for i in range(4):
            bar.advance(1, bad=i)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert [(line["event"], line["done"], line["bad"]) for line in lines] == [
        ("progress", 1, 0),
        ("progress_end", 4, 3),
    ]
    assert {"what": "prepare", "unit": "clips", "total": 4, "eta_s": 0.0}.items() <= lines[-1].items()
    assert lines[-1]["per_s"] > 0


def test_every_due_heartbeat_is_written_and_totals_may_come_late(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("x", heartbeat_seconds=0) as bar:
        bar.update(1)
        bar.update(2, total=10)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["total"] for line in lines] == [None, 10, 10]
    assert lines[0]["eta_s"] is None
    assert lines[1]["eta_s"] is not None


def test_the_last_heartbeat_comes_even_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ValueError), console.progress("x", 9) as bar:
        bar.advance()
        raise ValueError
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "progress_end"


def test_progress_on_a_terminal_is_a_bar_that_keeps_brackets(terminal) -> None:
    screen = terminal()
    with console.progress("read [val]", 3, unit="clips") as bar:
        bar.advance(2, path="runs/[red]/x")
        bar.update(3, path="runs/[red]/x", loss=0.123456)
    text = screen.getvalue()
    assert "read [val]" in text
    assert "3/3" in text
    assert "runs/[red]/x" in text
    assert "loss=0.1235" in text
    assert "{" not in text


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with console.progress("x", 3, heartbeat_seconds=0) as bar:
        bar.advance(3)
        bar.update(3, total=4)
    console.print_result("result")
    console.print_note("note")
    assert capsys.readouterr() == ("", "")


def test_results_and_notes_keep_markup_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_result("runs/[val]/x.mp4")
    console.print_note("[/tmp/x]")
    assert capsys.readouterr() == ("runs/[val]/x.mp4\n", "[/tmp/x]\n")


@pytest.mark.parametrize(
    ("speed", "unit", "text"),
    [
        (3.21, "clips", "3.2 clips/s"),
        (0.25, "steps", "4.0 s/step"),
        (0.25, "", "0.2/s"),
        (None, "x", ""),
        (2, "", "2.0/s"),
    ],
)
def test_rates(speed: float | None, unit: str, text: str) -> None:
    assert console._rate(speed, unit) == text


@pytest.mark.usefixtures("_restore_logging")
@pytest.mark.parametrize(
    ("rank", "everyone", "verbose", "levels"),
    [
        ("0", "", False, ["INFO", "WARNING"]),
        ("0", "", True, ["DEBUG", "INFO", "WARNING"]),
        ("2", "", False, ["WARNING"]),
        ("2", "1", False, ["INFO", "WARNING"]),
    ],
)
def test_who_logs_what(
    rank: str,
    everyone: str,
    verbose: bool,
    levels: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("HPDM_LOG_ALL_RANKS", everyone)
    console.setup_logging(verbose=verbose)
    log = logging.getLogger("hpdm_core.something")
    log.debug("d [x]")
    log.info("i [x]")
    log.warning("w [x]")
    logging.getLogger("elsewhere").info("not ours")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[-3] for line in lines] == levels
    assert all(f"rank {rank} " in line and line.endswith("[x]") for line in lines)


@pytest.mark.usefixtures("_restore_logging")
def test_logs_on_a_terminal_keep_brackets(terminal) -> None:
    screen = terminal()
    console.setup_logging()
    logging.getLogger("hpdm_core").info("wrote runs/[val]/x")
    assert "wrote runs/[val]/x" in screen.getvalue()
