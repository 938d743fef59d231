"""`hpdm train` as typed: plan, run, resume, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hpdm_cli.app import app
from hpdm_core.families.weights import load_model


def hpdm(*args, cwd, starter=(), **env):
    """Run the command line in `cwd` without a GPU; returns the finished process. `starter`: words of a launcher."""
    env = {k: v for k, v in os.environ.items() if k != "HPDM_DATA"} | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **env,
    }
    command = [sys.executable, *starter, "-m", "hpdm_cli", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def inside(place, monkeypatch):
    """Run the command line in `place` without starting a process."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("HPDM_DATA", raising=False)
    return lambda *args: CliRunner().invoke(app, args)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/smoke prepared by the line that `train` itself suggests."""
    cwd = tmp_path_factory.mktemp("place")
    missing = hpdm("train", "--preset", "hpdm-smoke", cwd=cwd)
    assert missing.returncode == 3, missing.stderr
    line = next(line for line in missing.stderr.splitlines() if line.startswith("hint: "))
    suggested = line.partition("hpdm ")[2].split()
    assert suggested[0] == "prepare-data"
    prepared = hpdm(*suggested, "--num", "12", "--workers", "1", cwd=cwd)
    assert prepared.returncode == 0, prepared.stderr
    return cwd


def test_a_preset_of_ones_own_extends_another_and_a_file_is_no_run_directory(inside, place):
    (place / "mine.yaml").write_text("train:\n  seed: 7\n")
    line = ("train", "--preset", "mine.yaml", "--data", "data/smoke")
    lacking = inside(*line, "--dry-run")
    assert (lacking.exit_code, "`extends: PRESET`" in lacking.stderr) == (2, True)
    (place / "mine.yaml").write_text("extends: hpdm-smoke\ntrain:\n  seed: 7\n")
    assert "\n  seed: 7\n" in inside(*line, "--dry-run").stdout
    refused = inside(*line, "--out", "mine.yaml")
    assert (refused.exit_code, refused.stderr.splitlines()[-2:]) == (
        2,
        ["error: mine.yaml is a file", "hint: --out names a folder"],
    )
    for more in ((), ("--nproc", "2")):  # said once, before any rank starts
        foreign = inside(*line, "--out", "data", "--device", "cpu", *more)
        assert (foreign.exit_code, foreign.stderr.splitlines()[-2:]) == (
            2,
            ["error: data is not empty and holds no run: smoke", "hint: give another --out"],
        )
        assert [path.name for path in (place / "data").iterdir()] == ["smoke"]


def test_a_dry_run_prints_config_and_plan_and_writes_nothing(inside, place):
    done = inside("train", "--preset", "hpdm-smoke", "--out", "dry", "--dry-run")
    assert done.exit_code == 0, done.stderr
    for words in (
        "num_classes: 10",
        "max_steps: 4",
        "12 clips kept",
        "3.0 batches per epoch",
        "4 steps of 4 videos",
        "parameters:",
        "network calls in all",
    ):
        assert words in done.stdout, words
    assert not (place / "dry").exists()


def test_a_dry_run_names_dropped_clips_and_a_hopeless_one_exits_3(inside):
    done = inside("train", "--preset", "hpdm-smoke", "--set", "data.frame_stride=2", "--dry-run")
    assert done.exit_code == 3
    assert "12 shorter than 15 frames" in done.stderr


def test_train_ends_with_a_checkpoint_and_goes_on_when_told(inside, place):
    line = ("train", "--preset", "hpdm-smoke")
    done = hpdm(*line, cwd=place)
    assert done.returncode == 0, done.stderr
    run = place / "runs" / "hpdm-smoke"
    log = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert set(log[0]["loss_levels"]) == {"level0", "level1", "level2"}
    model = load_model(run)
    assert model.header.step == 4
    assert len(model.header.classes) == 10
    assert "num_classes: 10" in (run / "config.yaml").read_text()

    again = inside(*line, "--set", "train.max_steps=6")
    assert again.exit_code == 0, again.stderr
    assert "train.max_steps changed from 4 to 6" in again.stderr
    assert load_model(run).header.videos_seen == 24

    refused = inside(*line, "--fresh")
    assert refused.exit_code == 2
    assert "runs/hpdm-smoke" in refused.stderr

    other = inside(*line, "--set", "model.token_dim=64")
    assert other.exit_code == 4
    assert "model.token_dim" in other.stderr


def test_the_time_limit_exits_75_and_samples_appear_on_the_way(place):
    settings = ("--set", "train.max_steps=100000", "--set", "train.sample_every_steps=2")
    line = ("train", "--preset", "hpdm-smoke", "--out", "limited", *settings, "--time-limit", "5s")
    done = hpdm(*line, cwd=place)
    assert done.returncode == 75, done.stderr
    assert "time limit" in done.stderr
    first = place / "limited" / "samples" / "step_00000002"
    assert {path.name for path in first.iterdir()} == {"grid.mp4", "grid.gif", "grid.png"}


def test_several_processes_keep_the_exit_code_and_continue_as_one(place):
    line = ("train", "--preset", "hpdm-smoke", "--out", "many", "--device", "cpu")
    endless = ("--set", "train.max_steps=100000", "--nproc", "2", "--time-limit", "1s")
    done = hpdm(*line, *endless, cwd=place)
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    steps = load_model(place / "many").header.step
    assert steps >= 1
    alone = hpdm(*line, "--set", f"train.max_steps={steps + 1}", cwd=place)
    assert alone.returncode == 0, alone.stderr
    assert "world_size changed from 2 to 1" in alone.stderr
    log = (place / "many" / "log.jsonl").read_text().splitlines()
    assert [json.loads(text)["step"] for text in log] == list(range(1, steps + 2))


def test_plain_torchrun_trains_as_nproc_does(place):
    """Two ranks under torchrun's own command give the weights of `--nproc 2`, bit for bit."""
    sets = ("--set", "train.max_steps=3", "--device", "cpu")
    line = ("train", "--preset", "hpdm-smoke", *sets, "--out")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = hpdm(*line, "torchrun", cwd=place, starter=torchrun)
    assert done.returncode == 0, done.stderr
    assert hpdm(*line, "nproc", "--nproc", "2", cwd=place).returncode == 0
    ours, theirs = (load_model(place / out).family.state_dict() for out in ("torchrun", "nproc"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--preset", "hpdm-smoke", "--nproc", "3", "--device", "cpu"), 2, "does not divide into 3 ranks"),
        (("--preset", "hpdm-smoke", "--nproc", "3", "--dry-run"), 2, "does not divide into 3 ranks"),
        (("--preset", "no-such-preset"), 2, "no-such-preset"),
        (("--preset", "hpdm-smoke", "--set", "train.max_stepz=3"), 2, "max_steps"),
        (("--preset", "hpdm-smoke", "--data", "nowhere"), 3, "nowhere"),
        (("--preset", "hpdm-smoke", "--device", "cuda"), 2, "--device cpu"),
        (("--preset", "hpdm-smoke", "--time-limit", "soon"), 2, "soon"),
        (("--preset", "hpdm-smoke", "--set", "model.condition.num_classes=7"), 3, "expects 7 classes"),
    ],
)
def test_mistakes_have_their_exit_codes(inside, args, code, words):
    done = inside("train", "--out", "mistakes", *args)
    assert done.exit_code == code, done.stderr
    assert words in done.stderr
    assert isinstance(done.exception, SystemExit)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_signal_to_the_whole_group_still_ends_in_a_checkpoint(place):
    """What `timeout`, a terminal's Ctrl-C and torchrun do: the loader's workers are in the group too."""
    sets = ("data.workers=2", "train.max_steps=5000", "train.checkpoint_every_steps=5000")
    words = [part for key in sets for part in ("--set", key)]
    command = [sys.executable, "-m", "hpdm_cli", "train", "--preset", "hpdm-smoke", "--out", "group", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, cwd=place, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = place / "group" / "log.jsonl"
    until = time.monotonic() + 100
    while not (log.exists() and log.stat().st_size) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    assert list((place / "group" / "checkpoints").glob("step_*")), errors


def rank_process(launcher, rank):
    """The process id of a rank that `--nproc` started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            environment = folder.joinpath("environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if int(parent) == launcher and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no rank {rank} under {launcher}")


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="finds processes in /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_named_and_the_same_command_continues(place, killed):
    sets = ("train.max_steps=16", "train.checkpoint_every_steps=2")
    words = [part for key in sets for part in ("--set", key)]
    line = ("train", "--preset", "hpdm-smoke", "--out", f"killed{killed}", "--device", "cpu", "--nproc", "2", *words)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    job = subprocess.Popen(
        [sys.executable, "-m", "hpdm_cli", *line], cwd=place, env=env, stderr=subprocess.PIPE, text=True
    )
    checkpoints, until = place / f"killed{killed}" / "checkpoints", time.monotonic() + 100
    while not checkpoints.is_dir() or all(f.suffix == ".tmp" for f in checkpoints.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(rank_process(job.pid, killed), signal.SIGKILL)
    errors = job.communicate(timeout=100)[1]
    assert job.returncode == 1, errors
    assert "Traceback" not in errors
    assert errors.count("error") == 1, errors
    assert f"error: rank {killed} was killed by SIGKILL" in errors
    assert errors.splitlines()[-1] == "hint: run the same command again to continue"
    if killed == 0:  # one continuation will do
        return

    again = hpdm(*line, cwd=place)
    assert again.returncode == 0, again.stderr
    assert "continuing from" in again.stderr
    log = (checkpoints.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(text)["step"] for text in log] == list(range(1, 17))
