"""The two attentions of matryoshka diffusion: within a picture, and over the frames of a pixel.

Both end in layers that start at zero. Shapes: B batch, R = B * T images, C channels, H W pixels,
N = H * W tokens, M condition tokens, S condition width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.families.mdm.config import FRAME_HEAD_DIM, HEADS
from hpdm_core.nn.attention import ConditionRead, attend, layer_norm
from hpdm_core.nn.convolution import Downsample, Upsample, fold_frames, group_norm, unfold_frames, zero

MAX_SEQUENCES = 16_384
"""Sequences per call of the fused kernel, whose launch grid is limited."""


class PictureAttention(nn.Module):
    """Attention of every pixel to its own picture and to the condition, by one set of queries.

    The two results are added before the output projection (MDM spec §2.2). condition_dim 0: no condition.
    """

    def __init__(self, channels: int, condition_dim: int, feed_forward: bool) -> None:
        super().__init__()
        self.head_dim = channels // HEADS
        self.norm, self.qkv = group_norm(channels), nn.Linear(channels, 3 * channels)
        self.condition = ConditionRead(condition_dim, channels, self.head_dim) if condition_dim else None
        self.out = zero(nn.Linear(channels, channels))
        self.mlp_norm = self.mlp = None
        if feed_forward:
            self.mlp_norm = group_norm(channels)
            self.mlp = nn.Sequential(
                nn.Linear(channels, 4 * channels), nn.GELU(), zero(nn.Linear(4 * channels, channels))
            )

    def forward(self, x_RCHW: Tensor, condition: Condition | None) -> Tensor:
        """[R, C, H, W] to the same; each row of the condition serves R / B images in a row."""
        q, k, v = self.qkv(_tokens(self.norm(x_RCHW))).chunk(3, dim=-1)
        read = attend(q, k, v, self.head_dim)
        if self.condition is not None:
            assert condition is not None
            read = read + self.condition(q, *condition)
        x_RCHW = x_RCHW + _picture(self.out(read), x_RCHW)
        if self.mlp is None or self.mlp_norm is None:
            return x_RCHW
        return x_RCHW + _picture(self.mlp(_tokens(self.mlp_norm(x_RCHW))), x_RCHW)


class FrameAttention(nn.Module):
    """At half the height and width, every pixel attends to itself in all frames (MDM spec §6).

    There is no position in time: the order of frames is the time convolutions' to tell.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head_dim = min(channels, FRAME_HEAD_DIM)
        self.down, self.up = Downsample(channels), Upsample(channels)
        self.norm, self.qkv = layer_norm(channels), nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))
        self.mlp_norm = layer_norm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), zero(nn.Linear(4 * channels, channels)))

    def forward(self, x_RCHW: Tensor, batch: int) -> Tensor:
        """[R, C, H, W] to the same, for `batch` videos of R / batch frames. H and W must be even."""
        half = unfold_frames(self.down(x_RCHW), batch)
        series = half.permute(0, 3, 4, 2, 1)
        tokens = series.flatten(0, 2)
        tokens = tokens + self.out(self._attend(self.qkv(self.norm(tokens))))
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        mixed = tokens.view(series.shape).permute(0, 4, 3, 1, 2)
        return x_RCHW + self.up(fold_frames(mixed))

    def _attend(self, qkv: Tensor) -> Tensor:
        parts = []
        for part in qkv.split(MAX_SEQUENCES):
            q, k, v = part.chunk(3, dim=-1)
            parts.append(attend(q, k, v, self.head_dim))
        return torch.cat(parts)


def _tokens(x_RCHW: Tensor) -> Tensor:
    """[R, C, H, W] to [R, N, C]."""
    return x_RCHW.flatten(2).transpose(1, 2)


def _picture(tokens_RNC: Tensor, like_RCHW: Tensor) -> Tensor:
    """[R, N, C] to the shape of `like`."""
    return tokens_RNC.transpose(1, 2).reshape(like_RCHW.shape)
