"""Convolutional blocks: shapes, zero starts, and what may and may not cross frames and rows."""

from __future__ import annotations

import torch

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
