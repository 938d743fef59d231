"""The network that folds frames into images against the same network computed on 5-D videos (support/plain_mdm.py)."""

from __future__ import annotations

import pytest
import torch

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.families.mdm import attention, unet
from tests.support.plain_mdm import plain_nest
from tests.support.tiny_mdm import NEST, inputs, tiny_family

PAPER_EXTENTS = ((1, 64, 64), (16, 64, 64), (16, 256, 256))
PAPER_NEST = (
    {"size": (64, 64), "channels": (8, 8, 16), "blocks": (1, 1, 1), "attention": (0, 0, 1), "feed_forward": True},
    {
        "frames": 16, "size": (64, 64), "channels": (8,) * 5, "blocks": (1,) * 5, "shrink": "time",
        "time_attention": (1,) * 5,
    },
    {"frames": 16, "size": (256, 256), "channels": (4, 4, 8), "blocks": (1, 1, 1)},
)  # fmt: skip
"""The nesting of `mdm-ucf101` (MDM spec: one frame inside 16 small frames inside 16 large ones), in few channels."""
LEVELS = {"inner": 0, "middle": 1, "outer": 2}


def told(rows=2, tokens=3):
    """A condition of several tokens, the last of them padding in every second row."""
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[::2, -1] = False
    return Condition(torch.randn(rows, tokens, 8, generator=torch.Generator().manual_seed(3)), mask)


@torch.no_grad()
def both(family, z, condition=None):
    """The predictions of the network and of the plain computation."""
    noise = torch.linspace(0.2, 0.7, len(z[0]))  # rows at different noise: a mix-up of rows shows
    return family.denoiser(z, noise, condition), plain_nest(family.denoiser, z, noise, condition)


def assert_equal(found, expected, k):
    scale = expected[k].std()
    assert scale > 0.05
    assert found[k].shape == expected[k].shape
    assert (found[k] - expected[k]).abs().max() < 2e-4 * scale


@pytest.fixture(scope="module")
def paper():
    """Both computations of the paper's video nesting."""
    family = tiny_family(levels=PAPER_NEST)
    assert tuple(level.extent for level in family.config.levels) == PAPER_EXTENTS
    assert family.config.scales == (1.0, 4.0, 16.0)
    return both(family, inputs(rows=1, extents=PAPER_EXTENTS), told(rows=1))


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_of_the_papers_video_nesting_is_the_plain_computation(paper, level):
    found, expected = paper
    assert found[LEVELS[level]].shape[2:] == PAPER_EXTENTS[LEVELS[level]]
    assert_equal(found, expected, LEVELS[level])


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_nests_of_every_depth_of_frames_that_are_not_square(levels):
    family = tiny_family(levels=NEST[:levels])
    found, expected = both(family, inputs(rows=3)[:levels], told(rows=3))
    assert len(found) == levels
    for k in range(levels):
        assert_equal(found, expected, k)


def test_the_inner_levels_of_a_nest_alone():
    family = tiny_family()
    for levels in (1, 2):
        found, expected = both(family, inputs()[:levels], told())
        for k in range(levels):
            assert_equal(found, expected, k)


def test_a_nest_that_is_told_nothing():
    family = tiny_family(condition={"kind": "none"})
    found, expected = both(family, inputs())
    for k in range(3):
        assert_equal(found, expected, k)


def test_layers_of_several_heads_and_of_several_channels_in_a_group():
    wide = tuple({**level, "channels": (64,) * len(level["channels"])} for level in NEST)
    found, expected = both(tiny_family(levels=wide), inputs(), told())
    for k in range(3):
        assert_equal(found, expected, k)


def test_gradients_of_every_parameter_are_those_of_the_plain_computation():
    family, z, noise = tiny_family(), inputs(), torch.tensor([0.2, 0.7])
    names, parameters = zip(*family.denoiser.named_parameters(), strict=True)
    found, expected = (
        torch.autograd.grad(sum(y.square().mean() for y in run(z, noise, told())), parameters)
        for run in (family.denoiser, lambda *given: plain_nest(family.denoiser, *given))
    )
    largest = max(b.abs().max().item() for b in expected)  # biases before a norm of one channel have rounding alone
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * largest, msg=name)


def videos_fastest(x_BCTHW):
    """A fold in the other order."""
    return x_BCTHW.permute(2, 0, 1, 3, 4).flatten(0, 1)


def from_videos_fastest(x_RCHW, batch):
    """Its inverse: images come out right, whatever serves the frames of a video in a row does not."""
    return x_RCHW.unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4)


@pytest.mark.parametrize("mistake", ["fold", "fold and unfold", "other rows inside"])
def test_the_oracle_sees_the_mistakes_that_folding_invites(monkeypatch, mistake):
    family, z = tiny_family(), inputs()
    if mistake == "other rows inside":
        layer = family.denoiser.levels[1].to_inner
        send = layer.forward
        monkeypatch.setattr(layer, "forward", lambda x: send(x).flip(0))
    for module in (unet, attention) if "fold" in mistake else ():
        monkeypatch.setattr(module, "fold_frames", videos_fastest)
        if "unfold" in mistake:
            monkeypatch.setattr(module, "unfold_frames", from_videos_fastest)
    found, expected = both(family, z, told())
    assert max((a - b).abs().max() for a, b in zip(found, expected, strict=True)) > 1e-2
