"""A run that is killed, stopped or damaged and started again is the run that was left alone, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpdm_core.errors import IncompatibleCheckpoint, StoppedOnRequest
from hpdm_core.training.run import fit
from tests.support.toy import ToySource, main, read_log, state_hash, toy_config

PROGRAM = Path(__file__).parents[1] / "support" / "toy.py"
LAST = "checkpoints/step_00000020"


def start(run, *options):
    """The toy program as a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(PROGRAM), str(run), *options]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_log(run, lines, process):
    """Wait until the run has logged so many lines."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        log = run / "log.jsonl"
        if log.exists() and log.read_text().count("\n") >= lines:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    pytest.fail("the run never logged")


@pytest.fixture(scope="module")
def threads():
    """One thread, as in the processes that are started here."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, threads):
    """Hash and log of 20 uninterrupted steps."""
    run = tmp_path_factory.mktemp("straight") / "run"
    fit(toy_config(), ToySource(), run, device="cpu")
    return state_hash(run / LAST), read_log(run)


def test_a_second_process_is_refused_and_the_first_is_left_alone(tmp_path, straight):
    run = tmp_path / "run"
    first = start(run, "delay=0.6")
    wait_for_log(run, 1, first)
    second = start(run)
    _, said = second.communicate(timeout=60)
    assert (second.returncode, f"another process is training {run}" in said) == (2, True)
    assert first.poll() is None
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert (state_hash(run / LAST), read_log(run)) == straight


@pytest.mark.parametrize("stop_at", [10, 15])
def test_ten_and_ten_steps_equal_twenty(tmp_path, straight, stop_at):
    run = tmp_path / "run"
    fit(toy_config(), ToySource(), run, device="cpu")
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > stop_at:
            shutil.rmtree(folder)
    assert list((run / "checkpoints").iterdir())
    fit(toy_config(), ToySource(), run, device="cpu")
    assert (state_hash(run / LAST), read_log(run)) == straight


def test_killed_at_a_random_moment(tmp_path, straight):
    """kill -9 in the middle of steps, logs and checkpoints, several times, until it gets through."""
    run = tmp_path / "run"
    moment = random.Random()
    kills = 0
    while True:
        process = start(run, "delay=0.03", "checkpoint_every_steps=3")
        if kills < 3:
            wait_for_log(run, 1, process)
            time.sleep(moment.uniform(0.0, 0.4))
            process.kill()
            process.communicate()
            kills += 1
            continue
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
        break
    assert (state_hash(run / LAST), read_log(run)) == straight
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signals_end_in_a_clean_checkpoint(tmp_path, straight, signal_name):
    run = tmp_path / "run"
    process = start(run, "delay=0.05", "checkpoint_every_steps=1000")
    wait_for_log(run, 2, process)
    process.send_signal(getattr(signal, signal_name))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    assert signal_name in errors
    (folder,) = (run / "checkpoints").iterdir()
    assert json.loads((folder / "state.json").read_text())["state"]["step"] == len(read_log(run))
    assert main([str(run)]) == 0
    assert (state_hash(run / LAST), read_log(run)) == straight


def test_the_time_limit_stops_and_the_next_call_continues(tmp_path, straight):
    run = tmp_path / "run"
    with pytest.raises(StoppedOnRequest, match="time limit"):
        fit(toy_config(), ToySource(delay=0.05), run, time_limit=0.2, device="cpu")
    assert 0 < len(read_log(run)) < 20
    result = fit(toy_config(), ToySource(), run, device="cpu")
    assert result.resumed
    assert result.step == 20
    assert (state_hash(run / LAST), read_log(run)) == straight


@pytest.mark.parametrize("damage", ["truncate", "flip", "no_manifest", "half_manifest", "missing"])
def test_a_damaged_newest_checkpoint_is_skipped(tmp_path, straight, damage, caplog):
    run = tmp_path / "run"
    fit(toy_config(), ToySource(), run, device="cpu")
    newest = run / LAST
    tensors = next((newest / "state").iterdir())
    data = tensors.read_bytes()
    if damage == "truncate":
        tensors.write_bytes(data[:-7])
    elif damage == "flip":
        tensors.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    elif damage == "missing":
        tensors.unlink()
    elif damage == "no_manifest":
        (newest / "state.json").unlink()
    else:
        (newest / "state.json").write_text((newest / "state.json").read_text()[:100])
    fit(toy_config(), ToySource(), run, device="cpu")
    assert str(newest) in caplog.text
    assert "damaged" in caplog.text
    assert (state_hash(newest), read_log(run)) == straight


def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(), ToySource(), run, device="cpu")
    for folder in (run / "checkpoints").iterdir():
        shutil.rmtree(folder / "state")
    log = (run / "log.jsonl").read_text()
    with pytest.raises(IncompatibleCheckpoint, match=r"no checkpoint in .* can be read"):
        fit(toy_config(), ToySource(), run, device="cpu")
    assert (run / "log.jsonl").read_text() == log


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"name": "lamb"}},
        {"optimizer": {"name": "muon"}},
        {"ema": {"kind": "half_life", "half_life_videos": 20.0, "every_steps": 3}},
        {"ema": {"kind": "none"}},
        {"model": {"adversarial": True}},
        {"model": {"two_phases": True}},
        {"log_every_steps": 7},
        {"grad_share_every_steps": 4, "log_every_steps": 3},
        {"max_videos": 70},
        {"precision": "bf16", "activation_checkpointing": True},
    ],
    ids=["lamb", "muon", "half-life", "no-ema", "roles", "phases", "sparse-log", "grad-share", "max-videos", "bf16"],
)
def test_every_kind_of_run_resumes_exactly(tmp_path, settings):
    settings = {"max_steps": 20, "checkpoint_every_steps": 8, **settings}
    if "max_videos" in settings:
        del settings["max_steps"]
    config = toy_config(**settings)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    end = fit(config, ToySource(), whole, device="cpu")
    shutil.copytree(whole, broken)
    for folder in sorted((broken / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    fit(config, ToySource(), broken, device="cpu")
    name = f"checkpoints/step_{end.step:08d}"
    assert state_hash(broken / name) == state_hash(whole / name)
    assert read_log(broken) == read_log(whole)


def test_a_finished_run_has_nothing_to_do_and_a_longer_one_goes_on(tmp_path, caplog):
    run = tmp_path / "run"
    fit(toy_config(max_steps=5), ToySource(), run, device="cpu")
    before = state_hash(run / "checkpoints/step_00000005")
    assert fit(toy_config(max_steps=5), ToySource(), run, device="cpu").step == 5
    assert state_hash(run / "checkpoints/step_00000005") == before
    assert fit(toy_config(max_steps=8), ToySource(), run, device="cpu").step == 8
    assert "train.max_steps changed from 5 to 8" in caplog.text
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4, 5, 6, 7, 8]
