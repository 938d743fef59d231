"""Convolutional pieces of U-Nets on images and on videos taken frame by frame.

A video [B, C, T, H, W] folds into a stack of R = B * T images, one video's frames in a row, so that
one set of 2-D layers serves images, frames and feature planes alike. Only the layers named after
time see more than one frame.

Under autocast convolutions run in its type; GroupNorm computes in fp32 and gives the type that it is given.
Shapes: B batch, R images (a multiple of B), C channels, T H W frames and pixels, E embedding width.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)
MAX_GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """GroupNorm in fp32 whose output has the type of its input, under autocast too.

    PyTorch's autocast makes it fp32 on CUDA (and not on a CPU): all that follows up to the next convolution would be
    computed, and kept for the backward pass, at twice the bytes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[R, C, H, W] to the same."""
        if input.dtype in (torch.bfloat16, torch.float16):
            return _HalfGroupNorm.apply(input, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(input)


class _HalfGroupNorm(torch.autograd.Function):
    """fp32 arithmetic on 16-bit input, of which only the input and fp32 statistics are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x, sizes = x.contiguous(), (len(x), x.shape[1], math.prod(x.shape[2:]))
        # Autocast wraps `group_norm`, not the function beneath it.
        y, mean, inverse = torch.native_group_norm(x.float(), weight, bias, *sizes, groups, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.sizes = (*sizes, groups)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        (gradient,), wanted = gradients, list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_group_norm_backward(
            gradient.float().contiguous(), x.float(), mean, inverse, weight, *ctx.sizes, wanted
        )
        of_x, of_weight, of_bias = found
        return None if of_x is None else of_x.to(x.dtype), of_weight, of_bias, None, None


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with 32 groups, or as many as divide narrower layers."""
    return GroupNorm(math.gcd(MAX_GROUPS, channels), channels)


def conv(channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1) -> nn.Conv2d:
    """A 2-D convolution that keeps the sides (divides them by `stride`); odd kernels."""
    return nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=kernel // 2)


def zero(layer: Layer) -> Layer:
    """`layer` with all its parameters set to zero: a branch that starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def fold_frames(x_BCTHW: Tensor) -> Tensor:
    """[B, C, T, H, W] to [B * T, C, H, W], one video's frames in a row."""
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def unfold_frames(x_RCHW: Tensor, batch: int) -> Tensor:
    """The inverse of `fold_frames`: [B * T, C, H, W] to [B, C, T, H, W]."""
    return x_RCHW.unflatten(0, (batch, -1)).transpose(1, 2)


class FilmResBlock(nn.Module):
    """Norm, SiLU, 3x3, norm scaled and shifted by an embedding, SiLU, zero 3x3; plus the input (ADM's block)."""

    def __init__(self, channels: int, out_channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm_in, self.conv_in = group_norm(channels), conv(channels, out_channels)
        self.film = nn.Linear(embedding_dim, 2 * out_channels)
        self.norm_out, self.conv_out = group_norm(out_channels), zero(conv(out_channels, out_channels))
        self.skip = nn.Identity() if channels == out_channels else conv(channels, out_channels, 1)

    def forward(self, x_RCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """[R, C, H, W] to [R, C', H, W]; each row of the embedding serves R / B images in a row."""
        film = self.film(F.silu(embedding_BE)).repeat_interleave(len(x_RCHW) // len(embedding_BE), dim=0)
        gain, shift = film[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x_RCHW)))
        h = self.norm_out(h) * (1 + gain) + shift
        return self.skip(x_RCHW) + self.conv_out(F.silu(h))


class Downsample(nn.Module):
    """Half the height and width: 3x3 convolution of stride 2. Sides must be even."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, stride=2)

    def forward(self, x_RCHW: Tensor) -> Tensor:
        """[R, C, H, W] to [R, C, H / 2, W / 2]."""
        return self.conv(x_RCHW)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x_RCHW: Tensor) -> Tensor:
        """[R, C, H, W] to [R, C, 2 H, 2 W]."""
        return self.conv(F.interpolate(x_RCHW, scale_factor=2.0, mode="nearest"))


class TimeDownsample(nn.Module):
    """Half the frames: a convolution over 3 frames of stride 2, at every pixel alone. T must be even."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 1), stride=(2, 1), padding=(1, 0))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C, T / 2, H, W]."""
        return _over_time(self.conv, x_BCTHW)


class TimeUpsample(nn.Module):
    """Twice the frames: nearest neighbour, then a convolution over 3 frames, at every pixel alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C, 2 T, H, W]."""
        return _over_time(self.conv, x_BCTHW.repeat_interleave(2, dim=2))


def _over_time(layer: nn.Conv2d, x_BCTHW: Tensor) -> Tensor:
    """A (3, 1) convolution with all pixels of a frame laid along its second axis."""
    return layer(x_BCTHW.flatten(3)).unflatten(3, x_BCTHW.shape[3:])
