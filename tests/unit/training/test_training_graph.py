"""What a CUDA graph of a step needs of the rest: random numbers and batches that keep their place in memory."""

import pytest
import torch

from hpdm_core.errors import ConfigError
from hpdm_core.rng import BatchStreams
from hpdm_core.training.distributed import World
from hpdm_core.training.graph import HeldStreams, check_graphable, copy_tensors
from hpdm_core.training.run import fit
from tests.support.tiny_hpdm import random_batch, tiny_family
from tests.support.toy import ToySource, read_log, toy_config


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


def test_a_replayed_step_sees_the_new_batch_and_its_draws():
    """The same losses from the buffers of another batch as from that batch itself."""
    family = tiny_family()
    first, second = random_batch(family, [0, 1]), random_batch(family, [2, 3])
    expected = family.losses("denoiser", second, BatchStreams(0, second.positions)).total
    held, streams = random_batch(family, [0, 1]), HeldStreams(0, first.positions, "cpu")
    family.losses("denoiser", held, streams)
    copy_tensors(held, second)
    streams.redraw(second.positions)
    assert torch.equal(family.losses("denoiser", held, streams).total, expected)


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
        check_graphable(toy_config(), world, rows, 4)


def test_one_whole_batch_on_one_gpu_is_accepted():
    check_graphable(toy_config(), World(torch.device("cuda")), 4, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_replayed_steps_are_launched_ones(tmp_path, optimizer):
    logs = []
    for replayed in (False, True):
        run = tmp_path / str(replayed)
        config = toy_config(max_steps=12, cuda_graph=replayed, optimizer={"name": optimizer})
        fit(config, ToySource(), run, device="cuda")
        logs.append([line["loss"] for line in read_log(run)])
    assert len(set(logs[0])) == 12
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
