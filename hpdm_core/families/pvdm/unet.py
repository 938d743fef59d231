"""The denoiser: one 2-D U-Net for all three planes, which meet in attention after every block.

Convolutions and in-plane attention see one plane at a time, with the same weights for all. After every
block one attention runs over all cells of all planes; it is the only way from plane to plane. It has
no positions: a plane is known by its shape and content alone, as in the reference.

The mean of the condition's tokens enters with the noise level; where the condition is a text, those
attentions also read its tokens. Both are extensions: the paper is unconditional.

Shapes: B batch, R images (planes of equal shape stack in the batch), C channels, E embedding width,
N cells of all planes. A list of tensors holds the planes in the order of `PLANES`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.families.pvdm.config import DenoiserSection, PvdmModel
from hpdm_core.families.pvdm.planes import join_cells, split_cells
from hpdm_core.nn.attention import ConditionRead, attend
from hpdm_core.nn.convolution import FilmResBlock, conv, group_norm, zero
from hpdm_core.nn.embeddings import ScalarEmbedding


class CellAttention(nn.Module):
    """Residual self-attention over all positions of a feature map; starts as the identity.

    With a condition_dim, the same queries also read condition tokens of that width.
    """

    def __init__(self, channels: int, heads: int, condition_dim: int = 0) -> None:
        super().__init__()
        self.head_dim = channels // heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.condition = ConditionRead(condition_dim, channels, self.head_dim) if condition_dim else None
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x_RC: Tensor, condition: Condition | None = None) -> Tensor:
        """[R, C, ...] to the same shape."""
        tokens = self.norm(x_RC).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        read = attend(q, k, v, self.head_dim)
        if self.condition is not None:
            assert condition is not None
            read = read + self.condition(q, *condition)
        return x_RC + self.out(read).transpose(1, 2).reshape(x_RC.shape)


class ResampleBlock(FilmResBlock):
    """A FiLM block that halves or doubles both sides, of its residual branch and of what it adds to."""

    def __init__(self, channels: int, embedding_dim: int, resample: nn.Module) -> None:
        super().__init__(channels, channels, embedding_dim)
        self.conv_in = nn.Sequential(resample, self.conv_in)
        self.skip = resample


class PlaneUnit(nn.Module):
    """Layers on each plane with shared weights, then attention over the cells of all planes."""

    def __init__(self, layers: list[nn.Module], channels: int, heads: int, condition_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.cross = CellAttention(channels, heads, condition_dim)

    def forward(self, planes: list[Tensor], embedding_BE: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """Planes [B, C, rows, columns] to planes [B, C', ...]."""
        planes = self._each(planes, embedding_BE)
        shapes = tuple((plane.shape[2], plane.shape[3]) for plane in planes)
        return split_cells(self.cross(join_cells(planes), condition), shapes)

    def _each(self, planes: list[Tensor], embedding_BE: Tensor) -> list[Tensor]:
        """The layers on every plane; the two planes with time go as one batch where the frame is square."""
        space, *time = planes
        if time[0].shape == time[1].shape:
            both = self._plane(torch.cat(time), embedding_BE.repeat(2, 1))
            return [self._plane(space, embedding_BE), *both.chunk(2)]
        return [self._plane(plane, embedding_BE) for plane in planes]

    def _plane(self, x_RCHW: Tensor, embedding_RE: Tensor) -> Tensor:
        for layer in self.layers:
            x_RCHW = layer(x_RCHW, embedding_RE) if isinstance(layer, FilmResBlock) else layer(x_RCHW)
        return x_RCHW


class PlaneUNet(nn.Module):
    """Predicts the noise of all planes from the noisy planes, the clip before and the noise level."""

    def __init__(self, config: PvdmModel) -> None:
        super().__init__()
        section, self.planes = config.denoiser, config.planes
        self.embedding_dim = 4 * section.width
        self.noise = ScalarEmbedding(self.embedding_dim, num_sinusoids=section.width)
        self.stem = conv(2 * config.latent_channels, section.width)
        # A class is one vector, which the embedding holds whole; only a text has more to read than its mean.
        layout = _Layout(section, self.embedding_dim, self.embedding_dim if config.condition.kind == "text" else 0)
        self.down = nn.ModuleList(layout.down())
        self.middle = layout.middle()
        self.up = nn.ModuleList(layout.up())
        self.norm = group_norm(section.width)
        self.head = zero(conv(section.width, config.latent_channels))

    def units(self) -> list[nn.Module]:
        """Every block with its attention across planes, in the order in which they run."""
        return [*self.down, self.middle, *self.up]

    def forward(
        self, z_BCN: Tensor, previous_BCN: Tensor, noise_B: Tensor, condition: Condition | None = None
    ) -> Tensor:
        """The predicted noise, float32 [B, C, N].

        z_BCN: noisy latents of unit variance. previous_BCN: clean latents of the clip before, zeros for
        none. noise_B: the schedule's noise coordinate. condition: tokens of the embedding's width.
        """
        embedding = self.noise(noise_B)
        if condition is not None:
            embedding = embedding + condition.mean()
        joint = torch.cat([z_BCN, previous_BCN.to(z_BCN.dtype)], dim=1)
        x = [self.stem(plane) for plane in self.planes.split(joint)]
        skips = [x]
        for unit in self.down:
            x = unit(x, embedding, condition)
            skips.append(x)
        x = self.middle(x, embedding, condition)
        for unit in self.up:
            x = unit([torch.cat(pair, dim=1) for pair in zip(x, skips.pop(), strict=True)], embedding, condition)
        return join_cells([self.head(F.silu(self.norm(plane))).float() for plane in x])


class _Layout:
    """Builds the units of a U-Net in order and remembers the widths of its skips."""

    def __init__(self, section: DenoiserSection, embedding_dim: int, condition_dim: int) -> None:
        self.section, self.embedding_dim, self.condition_dim = section, embedding_dim, condition_dim
        self.levels = [section.width * multiplier for multiplier in section.multipliers]
        self.skips = [section.width]
        self.channels = section.width

    def down(self) -> list[PlaneUnit]:
        """Per level `blocks` units, then one that halves the sides, but for the last level."""
        units = []
        for level, width in enumerate(self.levels):
            for _ in range(self.section.blocks):
                units.append(self._unit(self._layers(self.channels, width, level)))
                self.skips.append(width)
            if level + 1 < len(self.levels):
                units.append(self._unit([ResampleBlock(width, self.embedding_dim, nn.AvgPool2d(2))]))
                self.skips.append(width)
        return units

    def middle(self) -> PlaneUnit:
        """Two blocks around an attention."""
        width, e = self.channels, self.embedding_dim
        attention = CellAttention(width, self.section.heads)
        return self._unit([FilmResBlock(width, width, e), attention, FilmResBlock(width, width, e)])

    def up(self) -> list[PlaneUnit]:
        """Per level one unit for each skip; the last of a level doubles the sides, but for the finest level."""
        units = []
        for level, width in reversed(list(enumerate(self.levels))):
            for index in range(self.section.blocks + 1):
                layers = self._layers(self.channels + self.skips.pop(), width, level)
                if level > 0 and index == self.section.blocks:
                    layers.append(ResampleBlock(width, self.embedding_dim, nn.Upsample(scale_factor=2)))
                units.append(self._unit(layers))
        return units

    def _layers(self, channels: int, out_channels: int, level: int) -> list[nn.Module]:
        self.channels = out_channels
        layers: list[nn.Module] = [FilmResBlock(channels, out_channels, self.embedding_dim)]
        if 2**level in self.section.attention:
            layers.append(CellAttention(out_channels, self.section.heads))
        return layers

    def _unit(self, layers: list[nn.Module]) -> PlaneUnit:
        return PlaneUnit(layers, self.channels, self.section.heads, self.condition_dim)
