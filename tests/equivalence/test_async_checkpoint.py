"""Checkpoints that are written while training goes on are the checkpoints that training would have waited for."""

import json
import signal
import threading
import time

import pytest

from hpdm_core.errors import NumericsError
from hpdm_core.training import checkpoint as checkpoint_module
from hpdm_core.training.checkpoint import newest_valid
from hpdm_core.training.run import fit
from tests.equivalence.test_resume import LAST, start, wait_for_log
from tests.support.toy import ToySource, main, read_log, state_hash, toy_config


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 20 steps that waits for every checkpoint."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are started here
    run = tmp_path_factory.mktemp("straight") / "run"
    fit(toy_config(async_checkpoint=False, keep_checkpoints=9), ToySource(), run, device="cpu")
    yield run
    torch.set_num_threads(before)


def test_the_bits_are_those_of_a_run_that_waits(tmp_path, straight):
    run = tmp_path / "run"
    fit(toy_config(async_checkpoint=True, keep_checkpoints=9), ToySource(), run, device="cpu")
    assert read_log(run) == read_log(straight)
    for step in (5, 10, 15, 20):  # all but the last were overwritten in memory while they were on their way
        name = f"checkpoints/step_{step:08d}"
        assert state_hash(run / name) == state_hash(straight / name), step


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The disk waits for a later step: a loop that waited for the disk would never reach it."""
    reached, seal = threading.Event(), checkpoint_module._seal

    def wait_for_a_later_step(folder, record):
        assert reached.wait(20)
        seal(folder, record)

    class Source(ToySource):
        def batches(self, view, *, start, **rest):
            for number, batch in enumerate(super().batches(view, start=start, **rest)):
                if number == 8:
                    reached.set()
                yield batch

    monkeypatch.setattr(checkpoint_module, "_seal", wait_for_a_later_step)
    fit(toy_config(max_steps=10), Source(), tmp_path / "run", device="cpu")
    assert newest_valid(tmp_path / "run").record["state"]["step"] == 10


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def test_kill_9_during_a_write_leaves_the_checkpoint_before_it(tmp_path, straight):
    run = tmp_path / "run"
    process = start(run, "delay=0.05", "slow_disk=1")
    wait_for(run / "checkpoints/step_00000010.tmp/weights.safetensors", process)
    wait_for_log(run, 11, process)
    process.kill()
    process.communicate()
    assert newest_valid(run).record["state"]["step"] == 5
    assert len(read_log(run)) > 10
    assert main([str(run)]) == 0
    assert state_hash(run / LAST) == state_hash(straight / LAST)
    assert read_log(run) == read_log(straight)
    assert not list((run / "checkpoints").glob("*.tmp"))


def test_sigterm_waits_for_the_write_and_adds_its_own(tmp_path, straight):
    run = tmp_path / "run"
    process = start(run, "delay=0.05", "slow_disk=0.7", "checkpoint_every_steps=6")
    wait_for(run / "checkpoints/step_00000006.tmp/weights.safetensors", process)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    first, last = sorted((run / "checkpoints").iterdir())
    assert first.name == "step_00000006"
    assert json.loads((last / "state.json").read_text())["state"]["step"] == len(read_log(run))
    assert main([str(run)]) == 0
    assert state_hash(run / LAST) == state_hash(straight / LAST)
    assert read_log(run) == read_log(straight)


def test_a_run_that_ends_in_an_error_keeps_what_it_began_to_write(tmp_path, monkeypatch):
    seal = checkpoint_module._seal

    def slow_seal(folder, record):
        time.sleep(0.5)
        seal(folder, record)

    monkeypatch.setattr(checkpoint_module, "_seal", slow_seal)
    with pytest.raises(NumericsError):
        fit(toy_config({"bad_position": 24}), ToySource(), tmp_path / "run", device="cpu")
    assert newest_valid(tmp_path / "run").record["state"]["step"] == 5
