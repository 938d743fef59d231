"""The nested U-Net: free at the start, two-way after it, frames and rows kept apart where they should be."""

from __future__ import annotations

import pytest
import torch

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.errors import IncompatibleCheckpoint
from hpdm_core.families.mdm.attention import FrameAttention, PictureAttention
from hpdm_core.nn.convolution import fold_frames, unfold_frames
from tests.support.tiny_mdm import EXTENTS, NEST, enliven, inputs, predict, tiny_family


def sensitivity(family, source, target):
    """How much the predictions of level `target` move when the input of level `source` does."""
    z = inputs()
    before = predict(family, z)[target]
    z[source] = z[source] + torch.randn(z[source].shape, generator=torch.Generator().manual_seed(1))
    return (predict(family, z)[target] - before).abs().max().item()


def test_a_new_network_predicts_zero_everywhere():
    for k, output in enumerate(predict(tiny_family(lively=False), inputs())):
        assert output.shape == (2, 3, *EXTENTS[k])
        assert not output.any()


@pytest.mark.parametrize("outer", [1, 2])
def test_wrapping_a_trained_network_changes_none_of_its_predictions(outer):
    inside, nest = tiny_family(seed=1, levels=NEST[:outer]), tiny_family(seed=2, lively=False)
    assert nest.load_inner(inside.state_dict()) == outer
    z, labels = inputs(), [0, 3]
    alone, wrapped = predict(inside, z[:outer], labels), predict(nest, z, labels)
    for k in range(outer):
        assert torch.equal(alone[k], wrapped[k])


def test_a_phase_starts_where_the_one_before_it_ended():
    family = tiny_family(lively=False)
    enliven(family.denoiser.levels[0])
    z = inputs()
    assert torch.equal(predict(family, z[:1])[0], predict(family, z)[0])


def test_weights_that_are_not_the_inner_levels_are_refused_and_nothing_changes():
    nest, other = tiny_family(seed=2), tiny_family(seed=1, levels=NEST[:1])
    before = {name: t.clone() for name, t in nest.state_dict().items()}
    missing = dict(other.state_dict())
    missing.pop("denoiser.levels.0.conv_in.weight")
    for tensors in (missing, {**other.state_dict(), "stray": torch.zeros(1)}, {}):
        with pytest.raises(IncompatibleCheckpoint, match="not the inner levels"):
            nest.load_inner(tensors)
    wider = tiny_family(levels=({**NEST[0], "channels": (8, 24)},))
    with pytest.raises(IncompatibleCheckpoint, match=r"denoiser\.levels\.0"):
        nest.load_inner(wider.state_dict())
    assert all(torch.equal(before[name], t) for name, t in nest.state_dict().items())


def test_resolutions_are_deaf_to_each_other_at_first_and_hear_each_other_after_training():
    closed, opened = tiny_family(lively=False), tiny_family()
    for level in closed.denoiser.levels:
        enliven(level.conv_out)
    for source in range(3):
        for target in range(3):
            if source != target:
                assert sensitivity(closed, source, target) == 0.0
                assert sensitivity(opened, source, target) > 1e-3


def test_rows_without_an_outer_level_are_as_in_the_smaller_nest():
    family, z = tiny_family(), inputs(rows=3)
    ragged = predict(family, [z[0], z[1][:2], z[2][:1]], [0, 1, 2])
    for rows, num_levels in ((slice(0, 1), 3), (slice(1, 2), 2), (slice(2, 3), 1)):
        alone = predict(family, [x[rows] for x in z[:num_levels]], [[0, 1, 2][rows.start]])
        for k in range(num_levels):
            assert torch.allclose(ragged[k][rows], alone[k], atol=1e-5)


def test_the_outer_level_sees_its_frames_one_by_one():
    """The released code tiles frames into one picture and cuts it up before every layer: the same thing."""
    level = tiny_family().denoiser.levels[2]
    z, embedding = inputs()[2], torch.randn(2, 16)
    x, skips = level.encode(z, None, embedding, None)
    together = level.head(level.decode(x, list(skips), embedding, None), 2)
    for t in range(z.shape[2]):
        x, skips = level.encode(z[:, :, t : t + 1], None, embedding, None)
        alone = level.head(level.decode(x, skips, embedding, None), 2)
        assert torch.allclose(together[:, :, t : t + 1], alone, atol=1e-5)


def test_frames_meet_in_the_middle_level():
    level = tiny_family().denoiser.levels[1]
    z, embedding = inputs()[1], torch.randn(2, 16)

    def last_frame(z):
        x, skips = level.encode(z, None, embedding, None)
        return level.decode(x, skips, embedding, None)[3::4]

    changed = z.clone()
    changed[:, :, 0] += 1
    assert (last_frame(z) - last_frame(changed)).abs().max() > 1e-3


def test_frame_attention_mixes_frames_of_one_place_and_of_one_video():
    torch.manual_seed(0)
    layer = FrameAttention(8)
    enliven(layer)
    torch.nn.init.dirac_(layer.up.conv.weight)
    x = torch.randn(2, 8, 3, 8, 8)
    changed = x.clone()
    changed[0, :, 0, :4] += 1
    moved = (unfold_frames(layer(fold_frames(changed), 2) - layer(fold_frames(x), 2), 2)).abs().amax(1)
    assert moved[0, 2, :4].min() > 0
    assert moved[0, 2, 6:].max() == 0
    assert moved[1].max() < 1e-6


def test_picture_attention_reads_its_picture_and_its_condition():
    torch.manual_seed(0)
    layer = PictureAttention(16, 8, feed_forward=True)
    x, condition = torch.randn(4, 16, 4, 4), Condition(torch.randn(2, 5, 8))
    assert torch.equal(layer(x, condition), x)
    enliven(layer)
    before = layer(x, condition)
    other = condition.tokens_BMD.clone()
    other[0, 4] *= -1
    moved = (layer(x, Condition(other)) - before).abs().amax((1, 2, 3))
    assert moved[:2].min() > 1e-4
    assert moved[2:].max() < 1e-6
    # Where token 4 is padding, nobody reads it.
    mask = (torch.arange(5) < 4).expand(2, -1)
    masked = layer(x, Condition(condition.tokens_BMD, mask))
    assert torch.equal(masked, layer(x, Condition(other, mask)))
    assert torch.allclose(masked, layer(x, Condition(condition.tokens_BMD[:, :4])), atol=1e-5)


def test_self_and_condition_attention_share_queries_and_add():
    torch.manual_seed(0)
    layer = PictureAttention(16, 8, feed_forward=False)
    enliven(layer)
    x, condition = torch.randn(2, 16, 4, 4), Condition(torch.randn(2, 3, 8))
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(tokens).unflatten(-1, (3, 8, 2)).unbind(2)
    kc, vc = layer.condition.key_value(layer.condition.norm(condition.tokens_BMD)).unflatten(-1, (2, 8, 2)).unbind(2)

    def softmax_read(keys, values):
        weights = torch.einsum("bnhd,bmhd->bhnm", q, keys).div(2**0.5).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, values).flatten(2)

    read = softmax_read(k, v) + softmax_read(kc, vc)
    expected = x + layer.out(read).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x, condition), expected, atol=1e-5)


def test_the_label_and_the_noise_level_change_every_level():
    family, z = tiny_family(), inputs()
    base = predict(family, z, [0, 0])
    for other in (predict(family, z, [1, 1]), predict(family, z, [0, 0], noise=0.8), predict(family, z)):
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(base, other, strict=True))


def test_more_condition_tokens_than_one_are_read():
    family = tiny_family()
    z, tokens = inputs(), torch.randn(2, 6, 8)
    base = family.denoiser(z, torch.full((2,), 0.3), Condition(tokens))
    other = tokens + (torch.arange(6) == 5)[:, None]
    moved = family.denoiser(z, torch.full((2,), 0.3), Condition(other))
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(base, moved, strict=True))
    mask = (torch.arange(6) < 5).expand(2, -1)
    padded = [family.denoiser(z, torch.full((2,), 0.3), Condition(t, mask)) for t in (tokens, other)]
    assert all(torch.equal(a, b) for a, b in zip(*padded, strict=True))


def test_a_normalised_level_does_not_see_the_scale_of_its_input():
    levels = (NEST[0], NEST[1], {**NEST[2], "normalize": True})
    family, z = tiny_family(levels=levels), inputs()
    base = predict(family, z)
    scaled = predict(family, [z[0], z[1], 3 * z[2]])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(base, scaled, strict=True))


def test_trained_levels_are_those_whose_head_has_moved():
    family = tiny_family(lively=False)
    assert family.denoiser.trained_levels() == 3
    for k in range(3):
        enliven(family.denoiser.levels[k].conv_out)
        assert family.denoiser.trained_levels() == k + 1


def test_every_parameter_gets_a_gradient_once_the_zeros_are_filled():
    family = tiny_family()
    outputs = predict(family, inputs(), [0, -1])
    sum(o.square().sum() for o in outputs).backward()
    assert [name for name, p in family.named_parameters() if p.grad is None or not p.grad.any()] == []
