"""What a CUDA graph of a step needs of the rest: random numbers and batches that keep their place in memory."""

import gc
import weakref
from functools import partial

import pytest
import torch

from hpdm_core.errors import ConfigError
from hpdm_core.rng import BatchStreams
from hpdm_core.training import run as run_module
from hpdm_core.training.distributed import World
from hpdm_core.training.graph import HeldStreams, check_graphable, copy_tensors
from hpdm_core.training.loop import Trainer
from hpdm_core.training.run import fit
from tests.support import tiny_hpdm, tiny_mdm, tiny_pvdm
from tests.support.tiny_hpdm import tiny_family
from tests.support.toy import ToyFamily, ToySource, read_log, toy_config
from tests.support.watch import Watch

GPU = World(torch.device("cuda"))


def test_held_draws_are_those_of_their_rows_and_keep_their_place():
    held = HeldStreams(3, [0, 1], "cpu")
    noise, sigma = held.normal("noise", (4, 5)), held.uniform("sigma", 2)
    for positions in ([0, 1], [6, 7]):
        held.redraw(positions)
        plain = BatchStreams(3, positions)
        assert torch.equal(noise, plain.normal("noise", (4, 5)))
        assert torch.equal(sigma, plain.uniform("sigma", 2))
    assert held.normal("noise", (4, 5)) is noise
    assert torch.equal(held.uniform("late", 1), BatchStreams(3, [6, 7]).uniform("late", 1))


STEPS = {
    "nested patches": ("denoiser", tiny_family, partial(tiny_hpdm.random_batch, tiny_family())),
    "nested levels": ("full", tiny_mdm.tiny_family, tiny_mdm.random_batch),
    "planes": ("denoiser", tiny_pvdm.tiny_family, tiny_pvdm.random_batch),
    "planes of all rows": ("autoencoder", tiny_pvdm.tiny_family, tiny_pvdm.random_batch),
    "against critics": ("generator", tiny_pvdm.tiny_family, tiny_pvdm.random_batch),
    "critics": ("critics", tiny_pvdm.tiny_family, tiny_pvdm.random_batch),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_replayed_step_sees_the_new_batch_and_its_draws(name):
    """The same losses from the buffers of another batch as from that batch itself."""
    role, make, batch_of = STEPS[name]
    family, first, second = make(), batch_of([0, 1]), batch_of([2, 3])
    expected = family.losses(role, second, BatchStreams(0, second.positions)).total
    held, streams = batch_of([0, 1]), HeldStreams(0, first.positions, "cpu")
    family.losses(role, held, streams)
    copy_tensors(held, second)
    streams.redraw(second.positions)
    assert torch.equal(family.losses(role, held, streams).total, expected)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_for_nothing_and_makes_no_tensor_from_python(name):
    role, make, batch_of = STEPS[name]
    family, batch = make(), batch_of([0, 1])
    streams = HeldStreams(0, batch.positions, "cpu")
    family.losses(role, batch, streams)  # the numbers are drawn outside of a capture
    with Watch() as watch:
        family.losses(role, batch, streams).total.backward()
    assert watch.seen == []


@pytest.mark.parametrize(
    ("world", "rows", "reason"),
    [
        (World(torch.device("cpu")), 4, "needs a GPU"),
        (World(torch.device("cuda"), 0, 2), 4, "one process"),
        (World(torch.device("cuda")), 8, "several passes"),
    ],
)
def test_a_step_that_a_graph_cannot_hold_is_refused(world, rows, reason):
    with pytest.raises(ConfigError, match=reason):
        accept(tiny_family(), world=world, rows=rows)


def test_one_whole_batch_on_one_gpu_is_accepted():
    accept(tiny_family())
    accept(tiny_mdm.tiny_family())
    accept(tiny_pvdm.tiny_family(), "ae")


def test_steps_that_differ_by_their_rows_are_refused_before_training():
    mixed = tiny_mdm.tiny_family(row_mix=(1, 1, 2))
    with pytest.raises(ConfigError, match=r"phase full, model.row_mix"):
        accept(mixed)
    accept(tiny_pvdm.tiny_family(training={"encode_rows": 4}), "ldm")
    with pytest.raises(ConfigError, match=r"phase ldm, more rows than model\.training\.encode_rows"):
        accept(tiny_pvdm.tiny_family(training={"encode_rows": 3}), "ldm")
    # And whoever does not say so is stopped at the first step.
    batch = tiny_mdm.random_batch(range(8))
    with pytest.raises(RuntimeError, match="follow from their positions"):
        mixed.losses("full", batch, HeldStreams(0, batch.positions, "cpu"))


def test_all_phases_are_checked_before_the_first_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyFamily, "varying", lambda family, phase, micro: "it varies" if phase == "joint" else "")
    monkeypatch.setattr(run_module, "check_graphable", on_a_gpu)
    with pytest.raises(ConfigError, match="in phase joint, it varies"):
        fit(toy_config({"two_phases": True}, cuda_graph=True), ToySource(), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_finished_phase_leaves_no_memory_to_the_collector(tmp_path, monkeypatch):
    """Moments, averages and captured steps of one phase are gone before the next one needs their place."""
    made, alive = [], []

    class Followed(Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            alive.append(sum(ref() is not None for ref in made))
            made.append(weakref.ref(self))
            self._graphs["of a capture"] = lambda: self

    monkeypatch.setattr(run_module, "Trainer", Followed)
    gc.collect()
    gc.disable()
    try:
        fit(toy_config({"two_phases": True}, max_steps=4), ToySource(), tmp_path / "run", device="cpu")
    finally:
        gc.enable()
    assert alive == [0, 0]
    assert made[-1]() is None


def on_a_gpu(family, phase, world, rows, micro):
    check_graphable(family, phase, World(torch.device("cuda")), rows, micro)


def accept(family, phase=None, *, world=GPU, rows=4):
    phases = family.phases()
    chosen = phases[-1] if phase is None else next(p for p in phases if p.name == phase)
    check_graphable(family, chosen, world, rows, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_replayed_steps_are_launched_ones(tmp_path, optimizer):
    logs = []
    for replayed in (False, True):
        run = tmp_path / str(replayed)
        config = toy_config(max_steps=12, cuda_graph=replayed, optimizer={"name": optimizer})
        fit(config, ToySource(), run, device="cuda")
        logs.append([line["loss"] for line in read_log(run)])
    assert len(set(logs[0])) == 12
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
