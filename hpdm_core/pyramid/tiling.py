"""Tile plans for inference (HPDM §3.4): cover a level's canvas with patches, and average where they meet.

With overlap an axis takes 2 * growth - 1 windows, else growth. Overlapping predictions are averaged at
every step (MultiDiffusion) with uniform weights as in the paper, or with a smooth window that falls
towards a tile's inner borders. Every tile has a parent tile on the level before that contains it.

Shapes: N tiles, B videos, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hpdm_core.errors import ConfigError
from hpdm_core.pyramid.extract import crop
from hpdm_core.pyramid.geometry import Pyramid

WindowShape = Literal["uniform", "smooth"]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one level. `overlap` says per axis (t, h, w) whether neighbours share half a patch."""

    pyramid: Pyramid
    level: int
    overlap: tuple[bool, bool, bool]
    window: WindowShape = "uniform"

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Offsets along each axis."""
        axes = []
        for growth, part, shared in zip(self.pyramid.growth(self.level), self.pyramid.patch, self.overlap, strict=True):
            if shared and growth > 1 and part % 2:
                raise ConfigError(f"a patch side of {part} has no integer half to overlap by")
            hop = part // 2 if shared and growth > 1 else part
            axes.append(tuple(range(0, (growth - 1) * part + 1, hop)))
        return tuple(axes)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [N, 3], time-major."""
        return np.array(list(product(*self.starts)), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.offsets)

    def parents(self, coarser: TileGrid) -> np.ndarray:
        """int64 [N]: for each tile, the containing tile of the level before whose centre is nearest."""
        ratio = np.array(self.pyramid.ratio(self.level))
        part = np.array(self.pyramid.patch)
        # [N, M, 3] offsets of tiles relative to each candidate parent, on this level's grid.
        gap = self.offsets[:, None] - ratio * coarser.offsets[None]
        inside = ((gap >= 0) & (gap <= (ratio - 1) * part)).all(-1)
        if not inside.any(-1).all():
            orphan = tuple(self.offsets[np.flatnonzero(~inside.any(-1))[0]])
            raise ConfigError(
                f"the tile at {orphan} of level {self.level} has no containing tile on level {coarser.level}",
                hint="use the same overlap on both levels",
            )
        distance = np.abs(2 * gap + part - ratio * part).sum(-1)
        return np.where(inside, distance, np.iinfo(np.int64).max).argmin(1)

    def gather(self, canvas_BCTHW: Tensor) -> Tensor:
        """All tiles of every canvas, [B * N, C, t, h, w], tiles of one canvas together."""
        tiles = [crop(canvas_BCTHW, tuple(o), self.pyramid.patch) for o in self.offsets]
        return torch.stack(tiles, dim=1).flatten(0, 1)

    def merge(self, tiles: Tensor) -> Tensor:
        """The weighted average of tiles [B * N, C, t, h, w] on canvases [B, C, T, H, W]."""
        shape = (-1, tiles.shape[1], *self.pyramid.extent(self.level))
        split = tiles.unflatten(0, (-1, len(self)))
        total = tiles.new_zeros((split.shape[0], *shape[1:]))
        weights = self.tile_weights.to(tiles)
        for n, offset in enumerate(self.offsets):
            crop(total, tuple(offset), self.pyramid.patch).add_(split[:, n] * weights[n])
        return total / self.coverage.to(tiles)

    @cached_property
    def tile_weights(self) -> Tensor:
        """float32 [N, t, h, w], positive."""
        axes = [
            self._axis_weights(part, extent, starts)
            for part, extent, starts in zip(
                self.pyramid.patch, self.pyramid.extent(self.level), self.starts, strict=True
            )
        ]
        rows = [a[:, None, None] * b[:, None] * c for a, b, c in product(*(axis.unbind(0) for axis in axes))]
        return torch.stack(rows)

    @cached_property
    def coverage(self) -> Tensor:
        """float32 [1, 1, T, H, W]: the sum of weights at each place."""
        total = torch.zeros(1, 1, *self.pyramid.extent(self.level))
        for weight, offset in zip(self.tile_weights, self.offsets, strict=True):
            crop(total, tuple(offset), self.pyramid.patch).add_(weight)
        return total

    def _axis_weights(self, part: int, extent: int, starts: tuple[int, ...]) -> Tensor:
        """float32 [num_starts, part]: ones, or a raised cosine that stays flat at the canvas border."""
        if self.window == "uniform" or len(starts) == 1:
            return torch.ones(len(starts), part)
        position = (torch.arange(part) + 0.5) / part
        hill = torch.sin(torch.pi * position) ** 2
        rows = []
        for start in starts:
            row = hill.clone()
            if start == 0:
                row[: part // 2] = 1.0
            if start + part == extent:
                row[part // 2 :] = 1.0
            rows.append(row)
        return torch.stack(rows)
