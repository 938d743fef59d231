"""Non-finite steps and requests to stop."""

import math
import signal
import time

import pytest
import torch

from hpdm_core.errors import ConfigError, NumericsError
from hpdm_core.training import guard as guard_module
from hpdm_core.training.guard import NonfiniteGuard, StopRequest, found_inf
from hpdm_core.training.run import fit
from tests.support.toy import ToySource, read_log, state_hash, toy_config


def test_stop_names_the_step_the_videos_and_the_parts(tmp_path):
    """Position 22 is in step 6 (videos 20..23); the run ends and the last checkpoint is the good step 5."""
    config = toy_config({"bad_position": 22})
    with pytest.raises(NumericsError) as caught:
        fit(config, ToySource(), tmp_path / "run", device="cpu")
    message = str(caught.value)
    assert "step 6" in message
    assert "20..23" in message
    for part in ("loss", "grad_norm", "dark", "bright"):
        assert part in message
    assert [f.name for f in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000005"]
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_bad_step_is_not_checkpointed_even_right_after_it(tmp_path):
    config = toy_config({"bad_position": 22}, checkpoint_every_steps=1, log_every_steps=100)
    with pytest.raises(NumericsError, match="step 6"):
        fit(config, ToySource(), tmp_path / "run", device="cpu")
    assert sorted(f.name for f in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step_00000005"


def test_skip_leaves_the_weights_and_the_means_alone(tmp_path, caplog):
    settings = {"nonfinite": "skip", "max_steps": 7, "checkpoint_every_steps": 1, "keep_checkpoints": 9}
    run = tmp_path / "run"
    fit(toy_config({"bad_position": 22}, **settings), ToySource(), run, device="cpu")
    assert "step 6" in caplog.text
    assert "skipped" in caplog.text
    log = read_log(run)
    assert log[5]["loss"] is None
    assert all(math.isfinite(line["loss"]) for line in log if line["step"] != 6)
    before, after = (_raw(run / "checkpoints" / f"step_{s:08d}" / "state") for s in (5, 6))
    for name, tensor in before.items():
        if not name.startswith("ema/"):
            assert torch.equal(tensor, after[name]), name
    assert state_hash(run / "checkpoints/step_00000007") != state_hash(run / "checkpoints/step_00000006")


def _raw(folder):
    from safetensors.torch import load_file

    (file,) = folder.iterdir()
    return load_file(file)


def test_endless_skipping_ends(monkeypatch):
    monkeypatch.setattr(guard_module, "MAX_SKIPPED", 3)
    guard = NonfiniteGuard("skip")
    for step in range(1, 4):
        guard.submit("net", step, (0, 1), ("loss", "grad_norm"), torch.tensor([math.nan, 1.0]))
    with pytest.raises(NumericsError, match="3 steps in a row"):
        list(guard.settle())


def test_a_good_step_resets_the_count(monkeypatch):
    monkeypatch.setattr(guard_module, "MAX_SKIPPED", 2)
    guard = NonfiniteGuard("skip")
    for step, value in enumerate([math.inf, 1.0, math.nan, 2.0]):
        guard.submit("net", step, (0, 1), ("loss", "grad_norm"), torch.tensor([1.0, value]))
    assert [numbers["grad_norm"] for _, numbers in guard.settle()] == [1.0, 2.0]


def test_the_flag_is_one_only_for_a_bad_loss_or_norm():
    for values, flag in (([1, 2, 3], 0), ([math.nan, 2, 3], 1), ([1, math.inf, 3], 1), ([1, 2, math.nan], 0)):
        numbers = torch.tensor([float(v) for v in values])
        assert found_inf(numbers).item() == flag


def test_numbers_are_read_one_step_late():
    guard = NonfiniteGuard("stop")
    for step in (1, 2):
        guard.submit("net", step, (0, 1), ("loss", "grad_norm"), torch.tensor([float(step), 1.0]))
    assert [n["loss"] for _, n in guard.settle(before_step=2)] == [1.0]
    assert [n["loss"] for _, n in guard.settle()] == [2.0]


def test_a_signal_only_sets_the_reason_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop.listening():
        assert stop.reason == ""
        signal.raise_signal(signal.SIGTERM)
        assert "SIGTERM" in stop.reason
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_signal_is_the_reason():
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason == "received SIGUSR1"


def test_a_second_interrupt_interrupts():
    # What a terminal's program has; one started in the background is told to ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_twice():
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert "SIGINT" in stop.reason
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_time_limit_is_a_reason():
    stop = StopRequest(0.01)
    assert stop.reason == ""
    time.sleep(0.02)
    assert "time limit" in stop.reason


def test_gradient_shares_need_whole_weights(tmp_path):
    config = toy_config(parallel="fsdp", grad_share_every_steps=2)
    with pytest.raises(ConfigError, match="sharded"):
        fit(config, ToySource(), tmp_path / "run", device="cpu")
