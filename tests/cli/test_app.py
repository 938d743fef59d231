from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hpdm_cli.app import COMMANDS, app
from hpdm_core.version import __version__

REPOSITORY = Path(__file__).parents[2]
FAKES = "tests.support.commands"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """`fake(function, *args)` runs `hpdm train` with a stand-in for the command's function."""

    def run(function: str, *args: str) -> Result:
        monkeypatch.setitem(COMMANDS, "train", (f"{FAKES}:{function}", ""))
        return CliRunner().invoke(app, [*args, "train"])

    return run


def program(*args: str, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `hpdm ARGS` in a process of its own; `code` replaces the entry point."""
    start = ["-c", code] if code else ["-m", "hpdm_cli"]
    return subprocess.run(
        [sys.executable, *start, *args],
        cwd=REPOSITORY,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        encoding=env.get("PYTHONIOENCODING", "utf-8"),
        timeout=120,
    )


def fake_program(function: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `hpdm ARGS` with `tests.support.commands:FUNCTION` as its train command."""
    code = f"from hpdm_cli import app; app.COMMANDS['train'] = ('{FAKES}:{function}', ''); app.main()"
    return program(*args, code=code, **env)


def test_help_lists_every_command_and_the_exit_codes() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name, (_, text) in COMMANDS.items():
        assert f"{name} " in result.stdout
        assert text in result.stdout
    for words in ("--version", "--traceback", "--verbose", "75 stopped on request"):
        assert words in " ".join(result.stdout.split())


def test_help_imports_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys; from hpdm_cli.app import app; app(['--help'], standalone_mode=False);"
        "print(*sys.modules, file=sys.stderr)"
    )
    result = program(code=code)
    assert result.returncode == 0
    modules = set(result.stderr.split())
    assert "hpdm_cli.app" in modules
    heavy = {"torch", "numpy", "pydantic", "rich.console", "scipy", "decord", "av", "open_clip", "yaml"}
    assert not heavy & modules
    assert not {m for m in modules if m.startswith("hpdm_cli.cmd_")}


def test_no_arguments_show_help_and_are_a_usage_error() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "prepare-data" in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"hpdm {__version__}\n")


@pytest.mark.parametrize("args", [["trian"], ["--nope"], ["presets", "shwo"], ["presets", "show"], ["presets"]])
def test_usage_errors_exit_2(args: list[str]) -> None:
    assert CliRunner().invoke(app, args).exit_code == 2


def test_a_mistyped_command_gets_the_nearest() -> None:
    assert "Did you mean 'train'" in CliRunner().invoke(app, ["trian"]).output


def test_an_hpdm_error_is_one_line_one_hint_and_its_exit_code(fake) -> None:
    result = fake("bad_data")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == "error: store [val] is empty\nhint: run `hpdm prepare-data`\n"


def test_traceback_shows_where_an_error_came_from(fake) -> None:
    result = fake("bad_data", "--traceback")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "in bad_data" in result.stderr
    assert result.stderr.endswith("error: store [val] is empty\nhint: run `hpdm prepare-data`\n")


def test_a_requested_stop_is_no_error(fake) -> None:
    result = fake("stopped")
    assert (result.exit_code, result.stderr) == (75, "stopped: step 7 is saved\n")


def test_distributed_errors_name_their_rank(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert fake("bad_data").stderr.startswith("error (rank 3): store")


def test_a_bug_shows_its_traceback_and_exits_1() -> None:
    result = fake_program("bug", "train")
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.rstrip().endswith("RuntimeError: unforeseen")


def test_ctrl_c_exits_130_without_a_traceback() -> None:
    result = fake_program("interrupted", "train")
    assert result.returncode == 130
    assert result.stderr.strip() == "interrupted; the same command again continues"


def test_global_flags_may_stand_anywhere_but_not_after_a_double_dash() -> None:
    after = fake_program("bad_data", "train", "--traceback")
    assert after.returncode == 3
    assert "Traceback" in after.stderr
    assert fake_program("echo", "train", "--", "a", "--traceback").stdout == "a --traceback\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_survives_any_encoding(encoding: str) -> None:
    result = fake_program("unprintable", "train", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert result.returncode == 0
    assert ("\\u03c3" in result.stdout) == (encoding != "utf-8")
    assert program("--help", PYTHONIOENCODING=encoding).returncode == 0


@pytest.mark.parametrize("columns", ["20", "40", "200"])
def test_help_fits_any_width(columns: str) -> None:
    result = program("--help", COLUMNS=columns, NO_COLOR="1")
    assert result.returncode == 0
    assert "prepare-data" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_closed_pipe_is_no_crash() -> None:
    shell = f"'{sys.executable}' -m hpdm_cli --help | head -n 1"
    result = subprocess.run(["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("Usage: hpdm")
    assert "Traceback" not in result.stderr


def test_the_console_script_is_the_apps_main() -> None:
    from importlib.metadata import entry_points

    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "hpdm"]
    assert script.value == "hpdm_cli.app:main"
