"""What the loop does step by step: clocks, phases, roles, log lines, hooks; and a golden run."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.errors import NumericsError
from hpdm_core.families.base import Phase
from hpdm_core.training.run import fit
from hpdm_core.training.state import TrainState, phase_steps
from tests.support.toy import ToyFamily, ToySource, read_log, toy_config

# Losses of the toy family's first 20 steps on the CPU: a change here is a change of the method's numbers.
GOLDEN = [
    4.269161,
    3.062281,
    3.601466,
    2.085729,
    2.291657,
    1.378449,
    1.12105,
    1.132485,
    0.724276,
    0.893909,
    0.506656,
    0.991534,
    0.556922,
    0.615233,
    0.574627,
    0.318604,
    0.622189,
    0.582768,
    0.64163,
    0.260539,
]


def test_golden_losses(tmp_path):
    fit(toy_config(), ToySource(), tmp_path / "run", device="cpu")
    assert [line["loss"] for line in read_log(tmp_path / "run")] == pytest.approx(GOLDEN, rel=1e-4)


def test_the_log_line(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(max_steps=7, log_every_steps=3), ToySource(), run, device="cpu")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["videos_seen"] for line in lines] == [12, 24, 28]
    for line in lines:
        keys = ["step", "phase", "videos_seen", "loss", "loss_levels", "grad_norm", "lr"]
        assert list(line) == [*keys, "videos_per_s", "memory_gib", "seconds"]
        assert line["loss"] == pytest.approx(sum(line["loss_levels"].values()))
        assert line["videos_per_s"] > 0
        assert 0 < line["memory_gib"] < 100
    every = tmp_path / "every"
    fit(toy_config(max_steps=7), ToySource(), every, device="cpu")
    losses = [line["loss"] for line in read_log(every)]
    assert lines[0]["loss"] == pytest.approx(sum(losses[:3]) / 3)
    assert lines[1]["loss"] == pytest.approx(sum(losses[3:6]) / 3)


def test_max_videos_ends_the_run(tmp_path):
    result = fit(toy_config(max_videos=30), ToySource(), tmp_path / "run", device="cpu")
    assert (result.step, result.videos_seen) == (8, 32)


def test_max_videos_counts_videos_also_after_a_change_of_batch_size():
    train = toy_config(max_videos=100, batch_size=10).train
    assert phase_steps(Phase("p", ()), train, TrainState()) == 10
    assert phase_steps(Phase("p", ()), train, TrainState(step=10, videos_seen=40)) == 16
    assert phase_steps(Phase("p", (), steps=3), train, TrainState()) == 3


def test_phases_follow_each_other_on_one_stream(tmp_path):
    positions = []

    class Spy(ToySource):
        def batches(self, view, **where):
            for batch in super().batches(view, **where):
                positions.extend(batch.positions)
                yield batch

    run = tmp_path / "run"
    result = fit(toy_config({"two_phases": True}, max_steps=5), Spy(), run, device="cpu")
    log = read_log(run)
    assert [(line["phase"], line["step"]) for line in log] == [
        *(("warm", s) for s in (1, 2, 3)),
        *(("joint", s) for s in (1, 2, 3, 4, 5)),
    ]
    assert positions == list(range(3 * 2 + 5 * 4))
    assert (result.step, result.videos_seen) == (8, 26)


def test_a_phase_may_have_micro_batches_of_its_own(tmp_path, monkeypatch):
    phases, passes = ToyFamily.phases, []
    monkeypatch.setattr(ToyFamily, "phases", lambda family: tuple(replace(p, micro_batch=1) for p in phases(family)))

    class Spy(ToySource):
        def batches(self, view, **where):
            passes.append((where["batch_size"], where["micro_batch"]))
            return super().batches(view, **where)

    fit(toy_config({"two_phases": True}, max_steps=2, micro_batch=2), Spy(), tmp_path / "run", device="cpu")
    assert passes == [(2, 1), (4, 1)]


def test_a_phase_trains_its_modules_alone(tmp_path):
    run = tmp_path / "run"
    fit(toy_config({"two_phases": True}, max_steps=5), ToySource(), run, device="cpu")
    after = {}
    for step in (3, 8):
        (file,) = (run / "checkpoints" / f"step_{step:08d}" / "state").iterdir()
        after[step] = load_file(file)
    assert torch.equal(after[3]["model/critic.weight"], after[8]["model/critic.weight"])
    assert not torch.equal(after[3]["model/net.inner.weight"], after[8]["model/net.inner.weight"])
    assert not any("critic" in name for name in after[8] if name.startswith(("ema/", "optim/")))


def test_roles_take_turns(tmp_path):
    run = tmp_path / "run"
    fit(toy_config({"adversarial": True}, max_steps=6), ToySource(), run, device="cpu")
    assert [sorted(line["loss_levels"]) for line in read_log(run)] == [
        ["bright", "dark"],
        ["bright", "dark"],
        ["critic"],
    ] * 2


def test_every_trained_tensor_moves_and_so_does_its_average(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(keep_checkpoints=9), ToySource(), run, device="cpu")
    states = []
    for step in (5, 20):
        (file,) = (run / "checkpoints" / f"step_{step:08d}" / "state").iterdir()
        states.append(load_file(file))
    names = [n for n in states[0] if n.startswith(("model/net", "ema/")) and not n.endswith("scale")]
    assert len(names) == 3 * 13
    for name in names:
        assert not torch.equal(states[0][name], states[1][name]), name


def test_samples_use_the_average_and_leave_training_alone(tmp_path):
    seen = []

    def sample(family, folder):
        assert not family.training
        seen.append((folder.name, family.net.inner.weight.detach().clone()))

    run = tmp_path / "run"
    config = toy_config(sample_every_steps=10)
    fit(config, ToySource(), run, device="cpu", sample=sample)
    assert [name for name, _ in seen] == ["step_00000010", "step_00000020"]
    (file,) = (run / "checkpoints/step_00000020/state").iterdir()
    assert torch.equal(seen[1][1], load_file(file)["ema/power_0.050/net.inner.weight"])
    fit(toy_config(), ToySource(), tmp_path / "plain", device="cpu")
    assert read_log(run) == read_log(tmp_path / "plain")


def test_gradient_shares_are_logged_and_leave_training_alone(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(grad_share_every_steps=4), ToySource(), run, device="cpu")
    log = read_log(run)
    shares = {line["step"]: line.pop("grad_share") for line in log if "grad_share" in line}
    assert list(shares) == [4, 8, 12, 16, 20]
    for share in shares.values():
        assert share.keys() == {"dark", "bright"}
        assert sum(share.values()) == pytest.approx(1.0)
    fit(toy_config(), ToySource(), tmp_path / "plain", device="cpu")
    assert log == read_log(tmp_path / "plain")


def test_the_initial_weights_depend_on_the_seed_alone(tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fit(toy_config(max_steps=2), ToySource(), tmp_path / "a", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    fit(toy_config(max_steps=2), ToySource(), tmp_path / "b", device="cpu")
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")
    fit(toy_config(max_steps=2, seed=4), ToySource(), tmp_path / "c", device="cpu")
    assert read_log(tmp_path / "a") != read_log(tmp_path / "c")


def test_tensorboard_holds_the_same_numbers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    fit(toy_config(max_steps=3), ToySource(), run, device="cpu")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("loss")]
    assert [step for step, _ in scalars] == [1, 2, 3]
    assert [value for _, value in scalars] == pytest.approx([line["loss"] for line in read_log(run)])
    assert len(events.Scalars("loss_levels/dark")) == 3


def test_samples_that_are_no_numbers_do_not_cost_the_run(tmp_path, caplog):
    def sample(family, folder):
        raise NumericsError("the model makes pixels that are not finite numbers")

    result = fit(toy_config(sample_every_steps=10), ToySource(), tmp_path / "run", device="cpu", sample=sample)
    assert result.step == 20
    assert [record.message for record in caplog.records if "no samples at step 10: " in record.message]
