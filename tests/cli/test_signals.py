"""How commands end when somebody stops them, hangs up, or no longer reads what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from hpdm_cli import cmd_demo, console
from hpdm_cli.app import COMMANDS, app
from hpdm_core.families import shipped
from tests.support.box import make_box

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals and pipes as POSIX has them")

REPOSITORY = Path(__file__).parents[2]
PROGRESS = '{"event": "progress"'
AGAIN = "; the same command again continues"
CLIPS = ("--frames", "8", "--size", "32x32", "--levels", "3")


class Program:
    """A running `hpdm`, or other Python, alone in its process group; `errors` grows as it speaks."""

    def __init__(self, folder: Path, *args: str, code: str | None = None, ignored: int = 0, **env: str) -> None:
        start = ["-c", code] if code else ["-m", "hpdm_cli"]
        inherited = {k: v for k, v in os.environ.items() if k not in ("HPDM_DATA", "RANK", "WORLD_SIZE")}
        own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HPDM_CACHE": str(folder / "cache")}
        # Signals as a terminal's program has them, whatever the tests were started with.
        os_signals = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

        def settle() -> None:
            for number, handler in {**os_signals, signal.SIGHUP: signal.SIG_DFL}.items():
                signal.signal(number, signal.SIG_IGN if number == ignored else handler)

        self.process = subprocess.Popen(
            [sys.executable, *start, *args],
            cwd=folder,
            env={**inherited, **own, "PYTHONPATH": str(REPOSITORY), **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=settle,
        )
        self.errors = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def wait_for(self, sign: str | Path, size: int = 0) -> None:
        """Until it has said `sign`, or the file `sign` is longer than `size`."""
        until = time.monotonic() + 100
        while not (sign in self.errors if isinstance(sign, str) else sign.exists() and sign.stat().st_size > size):
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < until, self.errors
            time.sleep(0.02)

    def stop(self, number: int) -> int:
        """Signal it as `timeout` does, itself and then its group, and return its exit code."""
        self.process.send_signal(number)
        os.killpg(self.process.pid, number)
        return self.end()

    def end(self) -> int:
        """Its exit code."""
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared store, a model, and videos to measure."""
    folder = tmp_path_factory.mktemp("place")
    make_box(folder)
    np.savez(folder / "videos.npz", np.random.default_rng(0).integers(0, 256, (64, 16, 12, 12, 3), dtype=np.uint8))
    prepared = Program(folder, "prepare-data", "--source", "synthetic", "--num", "12", *CLIPS, "--out", "data")
    assert prepared.end() == 0, prepared.errors
    return folder


ENDLESS = {
    "prepare-data": ("--source", "synthetic", "--num", "20000", *CLIPS, "--workers", "1", "--out", "many"),
    "sample": ("--ckpt", "box.safetensors", "--num", "5000", "--format", "npz", "--device", "cpu", "--out", "made"),
    "eval-fvd": ("--real", "videos.npz", "--fake", "videos.npz", "--detector", "random-i3d", "--protocol", "smoke",
                 "--n", "64", "--batch", "1", "--no-cache", "--device", "cpu"),
    "demo": ("--quick", "--steps", "100000"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "name", "again"),
    [
        ("prepare-data", "SIGTERM", AGAIN),
        ("prepare-data", "SIGHUP", AGAIN),
        ("sample", "SIGHUP", AGAIN),
        ("eval-fvd", "SIGTERM", ""),
        ("demo", "SIGTERM", AGAIN),
    ],
)
def test_a_signal_is_one_line_and_exit_code_75(place: Path, command: str, name: str, again: str) -> None:
    program = Program(place, command, *ENDLESS[command])
    program.wait_for(PROGRESS)
    assert program.stop(getattr(signal, name)) == 75, program.errors
    assert program.errors.count("stopped") == 1, program.errors
    assert program.errors.splitlines()[-1] == f"stopped by {name}{again}"
    assert '{"event": "progress_end"' in program.errors  # what was open was closed
    assert "Traceback" not in program.errors


def test_ctrl_c_in_a_step_ends_the_demo(tmp_path: Path) -> None:
    program = Program(tmp_path, "demo", "--quick")
    program.wait_for(PROGRESS)
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 130, program.errors
    assert program.errors.splitlines()[-1] == f"interrupted{AGAIN}"
    assert "[3/3]" not in program.errors
    assert "Traceback" not in program.errors


def leaves_with_7() -> None:
    """End with an exit code of its own."""
    raise typer.Exit(7)


def test_the_exit_code_of_a_step_is_the_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", tmp_path / "none.safetensors")
    monkeypatch.setitem(COMMANDS, "compare", ("tests.cli.test_signals:leaves_with_7", ""))
    monkeypatch.setattr(cmd_demo, "prepare_command", lambda scale, out: ["compare"])
    done = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "demo")])
    assert (done.exit_code, "[2/3]" in done.stderr) == (7, False)


def train(place: Path, out: str, *args: str, ignored: int = 0) -> Program:
    """`hpdm train` without an end, when its first steps are in the log."""
    sets = ("data.workers=1", "train.max_steps=100000", "train.checkpoint_every_steps=100000")
    words = [word for key in sets for word in ("--set", key)]
    line = ("train", "--preset", "hpdm-smoke", "--data", "data", "--device", "cpu", "--out", out, *words, *args)
    program = Program(place, *line, ignored=ignored)
    program.wait_for(place / out / "log.jsonl")
    return program


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_hangup_ends_training_in_a_checkpoint(place: Path, ranks: str) -> None:
    program = train(place, f"hangup{ranks}", "--nproc", ranks)
    code = program.stop(signal.SIGHUP)
    assert code == 75, program.errors
    assert "(received SIGHUP)" in program.errors
    assert list((place / f"hangup{ranks}" / "checkpoints").glob("step_*/weights.safetensors"))
    assert "Traceback" not in program.errors


def test_under_nohup_a_hangup_is_ignored(place: Path) -> None:
    program = train(place, "nohup", ignored=signal.SIGHUP)
    program.process.send_signal(signal.SIGHUP)
    log = place / "nohup" / "log.jsonl"
    program.wait_for(log, log.stat().st_size + 1000)  # several steps
    assert program.stop(signal.SIGTERM) == 75, program.errors
    assert "(received SIGTERM)" in program.errors
    assert "SIGHUP" not in program.errors


def test_a_forked_worker_and_a_rank_end_as_without_a_handler(tmp_path: Path) -> None:
    fork = """
import os, signal
from hpdm_cli import stopping
stopping.raise_on_signals()
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
"""
    worker = Program(tmp_path, code=fork)
    assert (worker.end(), worker.errors) == (0, "")
    rank = Program(tmp_path, code="import os, signal; from hpdm_cli import stopping; stopping.raise_on_signals(); "
                   "os.kill(os.getpid(), signal.SIGTERM)", RANK="0")  # fmt: skip
    assert (rank.end(), rank.errors) == (-signal.SIGTERM, "")


def unread() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def hpdm(*args: str, stdout: int, stderr: int) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hpdm_cli", *args]
    return subprocess.run(command, env=env, stdout=stdout, stderr=stderr, text=True, timeout=100)


@pytest.mark.parametrize("args", [("presets", "list"), ("--version",), ("--help",)])
def test_a_reader_that_went_away_is_no_error(args: tuple[str, ...]) -> None:
    writer = unread()
    done = hpdm(*args, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (console.READER_GONE, "")


@pytest.mark.parametrize("where", ["pipe", "full"])
def test_what_stderr_does_not_take_ends_no_work(tmp_path: Path, where: str) -> None:
    if where == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    stderr = unread() if where == "pipe" else os.open("/dev/full", os.O_WRONLY)
    line = ("prepare-data", "--source", "synthetic", "--num", "4", *CLIPS, "--out", str(tmp_path / "data"))
    done = hpdm(*line, stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    assert (done.returncode, done.stdout.startswith("kept ")) == (0, True)
    assert (tmp_path / "data" / "store.json").exists()


@pytest.mark.parametrize("line", [("presets", "list"), ("--version",), ("--help",), ("train", "--help")])
def test_results_do_not_go_to_a_full_disk_unnoticed(line: tuple[str, ...]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    full = os.open("/dev/full", os.O_WRONLY)
    done = hpdm(*line, stdout=full, stderr=subprocess.PIPE)
    os.close(full)
    error, remedy = done.stderr.splitlines()
    assert (done.returncode, error) == (2, "error: No space left on device: standard output")
    assert remedy.startswith("hint: free some space")
