"""The U-Net of one level: down, something in the middle, up. Frames are images of one stack.

What the middle is, the nest decides: the innermost level has blocks there, every other level has the whole
network of the level below (see `nested.py`).

Shapes: B batch, R = B * T images, C channels, H W pixels, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.families.mdm.attention import FrameAttention, PictureAttention
from hpdm_core.families.mdm.config import NestLevel
from hpdm_core.nn.convolution import (
    Downsample,
    FilmResBlock,
    TimeDownsample,
    TimeUpsample,
    Upsample,
    conv,
    fold_frames,
    group_norm,
    unfold_frames,
    zero,
)
from hpdm_core.nn.embeddings import sinusoids

CHANNELS = 3


class TimeEmbedding(nn.Module):
    """One vector per noise level, from sinusoids of its discrete time (periods from 2 pi to 20,000 pi times)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_sinusoids = dim // 4
        self.project = nn.Sequential(nn.Linear(dim // 4, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, noise_B: Tensor) -> Tensor:
        """The schedule's coordinate of sigma, in [0, 1), to [B, E]."""
        return self.project(sinusoids(noise_B, self.num_sinusoids, lowest=0.1, highest=1000.0))


class Stage(nn.Module):
    """Residual blocks at one side length, attention after each, and a change of size at the end.

    widths: input channels of each block, joined skips included.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        index: int,
        level: NestLevel,
        dims: tuple[int, int],
        resize: nn.Module | None,
    ) -> None:
        super().__init__()
        embedding_dim, condition_dim = dims
        self.blocks = nn.ModuleList(FilmResBlock(width, channels, embedding_dim) for width in widths)
        self.pictures = nn.ModuleList(
            nn.ModuleList(
                PictureAttention(channels, condition_dim, level.feed_forward)
                for _ in range(level.layers("attention")[index])
            )
            for _ in widths
        )
        self.frames = nn.ModuleList(
            nn.ModuleList(FrameAttention(channels) for _ in range(level.layers("time_attention")[index]))
            for _ in widths
        )
        self.resize = resize

    def forward(
        self,
        x_RCHW: Tensor,
        embedding_BE: Tensor,
        condition: Condition | None,
        skips: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The output of every block, and of the change of size if there is one. skips: joined to each block's input."""
        outputs: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if skips is not None:
                x_RCHW = torch.cat([x_RCHW, skips[i].to(x_RCHW.dtype)], dim=1)
            x_RCHW = block(x_RCHW, embedding_BE)
            for layer in self.pictures[i]:  # type: ignore[union-attr]
                x_RCHW = layer(x_RCHW, condition)
            for layer in self.frames[i]:  # type: ignore[union-attr]
                x_RCHW = layer(x_RCHW, len(embedding_BE))
            outputs.append(x_RCHW)
        if isinstance(self.resize, (TimeDownsample, TimeUpsample)):
            outputs.append(fold_frames(self.resize(unfold_frames(x_RCHW, len(embedding_BE)))))
        elif self.resize is not None:
            outputs.append(self.resize(x_RCHW))
        return outputs


class Middle(nn.Module):
    """The innermost bottleneck: block, attention, block."""

    def __init__(self, channels: int, level: NestLevel, dims: tuple[int, int]) -> None:
        super().__init__()
        embedding_dim, condition_dim = dims
        self.first = FilmResBlock(channels, channels, embedding_dim)
        self.attention = PictureAttention(channels, condition_dim, level.feed_forward)
        self.second = FilmResBlock(channels, channels, embedding_dim)

    def forward(self, x_RCHW: Tensor, embedding_BE: Tensor, condition: Condition | None) -> Tensor:
        """[R, C, H, W] to the same."""
        x_RCHW = self.attention(self.first(x_RCHW, embedding_BE), condition)
        return self.second(x_RCHW, embedding_BE)


class LevelUNet(nn.Module):
    """One level's own layers. inner_channels: width at the input and output of the level below; None: innermost."""

    def __init__(self, level: NestLevel, dims: tuple[int, int], inner_channels: int | None) -> None:
        super().__init__()
        self.level = level
        widths, blocks, last = level.channels, level.blocks, len(level.channels) - 1
        down, up = (TimeDownsample, TimeUpsample) if level.shrink == "time" else (Downsample, Upsample)
        self.time = TimeEmbedding(dims[0])
        self.conv_in = conv(CHANNELS, widths[0])
        self.down, skips, width = nn.ModuleList(), [widths[0]], widths[0]
        for i, channels in enumerate(widths):
            resize = down(channels) if i < last else None
            entering = [width] + [channels] * (blocks[i] - 1)
            self.down.append(Stage(entering, channels, i, level, dims, resize))
            skips += [channels] * (blocks[i] + (i < last))
            width = channels
        self.middle = self.to_inner = self.from_inner = None
        if inner_channels is None:
            self.middle = Middle(width, level, dims)
        else:
            # Both start at zero: wrapping a trained network changes none of its predictions.
            self.to_inner = zero(conv(width, inner_channels))
            self.from_inner = zero(conv(inner_channels, width))
        self.up = nn.ModuleList()
        for i in reversed(range(last + 1)):
            joined = [(width if n == 0 else widths[i]) + skips.pop() for n in range(blocks[i] + 1)]
            self.up.append(Stage(joined, widths[i], i, level, dims, up(widths[i]) if i > 0 else None))
            width = widths[i]
        self.norm_out, self.conv_out = group_norm(width), zero(conv(width, CHANNELS))

    def encode(
        self, z_BCTHW: Tensor, given_RCHW: Tensor | None, embedding_BE: Tensor, condition: Condition | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck and the skips of a noisy clip. given: features from the level outside, added at the start."""
        if self.level.normalize:
            z_BCTHW = z_BCTHW / z_BCTHW.std(dim=(1, 2, 3, 4), keepdim=True)
        x_RCHW = self.conv_in(fold_frames(z_BCTHW))
        if given_RCHW is not None:
            x_RCHW = x_RCHW + given_RCHW
        skips = [x_RCHW]
        for stage in self.down:
            skips += stage(skips[-1], embedding_BE, condition)
        return skips[-1], skips

    def decode(self, x_RCHW: Tensor, skips: list[Tensor], embedding_BE: Tensor, condition: Condition | None) -> Tensor:
        """The last features, [R, C, H, W] at full size. Empties `skips`."""
        for stage in self.up:
            joined = [skips.pop() for _ in stage.blocks]  # type: ignore[union-attr, arg-type]
            x_RCHW = stage(x_RCHW, embedding_BE, condition, joined)[-1]
        return x_RCHW

    def head(self, x_RCHW: Tensor, batch: int) -> Tensor:
        """The prediction [B, 3, T, H, W] in fp32 from the last features."""
        return unfold_frames(self.conv_out(F.silu(self.norm_out(x_RCHW))).float(), batch)
