"""Convolutional blocks: shapes, zero starts, and what may and may not cross frames and rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hpdm_core.nn.convolution import (
    Downsample,
    FilmResBlock,
    TimeDownsample,
    TimeUpsample,
    Upsample,
    fold_frames,
    group_norm,
    unfold_frames,
)


def test_folding_keeps_the_frames_of_a_video_together():
    video = torch.arange(2 * 3 * 4.0).view(2, 1, 3, 2, 2)
    folded = fold_frames(video)
    assert torch.equal(folded[:3, 0], video[0, 0])
    assert torch.equal(unfold_frames(folded, 2), video)


def test_a_new_block_with_equal_widths_is_the_identity():
    torch.manual_seed(0)
    block = FilmResBlock(8, 8, 4)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x, torch.randn(2, 4)), x)


def test_each_embedding_row_serves_the_images_of_its_own_video():
    torch.manual_seed(0)
    block = FilmResBlock(8, 12, 4)
    torch.nn.init.normal_(block.conv_out.weight, std=0.1)
    frames, embedding = torch.randn(6, 8, 6, 6), torch.randn(2, 4)
    together = block(frames, embedding)
    for row in range(2):
        alone = block(frames[3 * row : 3 * row + 3], embedding[row : row + 1])
        assert torch.allclose(together[3 * row : 3 * row + 3], alone, atol=1e-5)
    assert not torch.allclose(together[:3], block(frames[:3], embedding[1:]), atol=1e-2)


def test_sampling_layers_change_the_sides_they_are_named_after():
    images, video = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 2, 6, 8)
    assert Downsample(4)(images).shape == (3, 4, 3, 4)
    assert Upsample(4)(images).shape == (3, 4, 12, 16)
    assert TimeDownsample(4)(video).shape == (3, 4, 1, 6, 8)
    assert TimeUpsample(4)(video).shape == (3, 4, 4, 6, 8)


def test_time_layers_are_one_dimensional_convolutions_at_every_pixel():
    torch.manual_seed(0)
    down, video = TimeDownsample(4), torch.randn(2, 4, 6, 3, 5)
    series = video.permute(0, 3, 4, 1, 2).flatten(0, 2)
    expected = torch.nn.functional.conv1d(series, down.conv.weight[..., 0], down.conv.bias, stride=2, padding=1)
    assert torch.allclose(down(video).permute(0, 3, 4, 1, 2).flatten(0, 2), expected, atol=1e-6)


def test_narrow_layers_get_as_many_groups_as_divide_them():
    assert [group_norm(c).num_groups for c in (8, 48, 64, 256)] == [8, 16, 32, 32]


@pytest.mark.parametrize("shape", [(4, 64, 5, 6), (2, 96, 7), (3, 32)])
def test_group_norm_is_pytorchs(shape):
    norm = group_norm(shape[1])
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(shape, requires_grad=True)
    expected = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    assert torch.equal(norm(x), expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, norm.weight, norm.bias]) for y in (norm(x), expected))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("mean", [0, 10, 100])
def test_group_norm_of_16_bits_is_that_of_fp32_rounded_once(mean):
    norm = group_norm(32)
    torch.nn.init.normal_(norm.weight)
    x = (mean + torch.randn(2, 32, 16, 16)).bfloat16().requires_grad_()
    weights = torch.randn(2, 32, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    exact = x.detach().float().requires_grad_()
    expected = F.group_norm(exact, norm.num_groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-6)
    found = torch.autograd.grad(y, [x, norm.weight, norm.bias], weights.bfloat16())
    right = torch.autograd.grad(expected, [exact, norm.weight, norm.bias], weights.bfloat16().float())
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-7, atol=2**-8)
    assert found[1].dtype == torch.float32


def test_group_norm_of_16_bits_keeps_its_input_and_no_copy():
    norm, x, kept = group_norm(32), torch.randn(2, 32, 16, 16).bfloat16().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm(x)
    assert max(t.nbytes for t in kept) == x.nbytes
