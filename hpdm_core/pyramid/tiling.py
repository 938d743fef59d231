"""Tile plans for inference (HPDM §3.4): cover a level's canvas with patches, and average where they meet.

With overlap an axis takes 2 * growth - 1 windows, half a patch apart, else growth. Overlapping predictions are
averaged at every step (MultiDiffusion) with uniform weights as in the paper, or with a smooth window that falls
towards a tile's inner borders. Every tile has a parent tile on the level before that contains it.

The windows of an overlapping axis can also take turns: one phase has those that lie side by side, the other
those in between, with whole patches at the canvas borders. Each phase covers the canvas nearly without overlap,
and what is a seam of one lies inside the tiles of the other.

Shapes: N tiles, B videos, C channels, (t, h, w) a patch, (n_t, n_h, n_w) windows per axis.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hpdm_core.config.schema import Extent
from hpdm_core.errors import ConfigError
from hpdm_core.pyramid.geometry import AXES, Pyramid

WindowShape = Literal["uniform", "smooth"]
Phase = Literal["all", "even", "odd"]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one level. `overlap` says per axis (t, h, w) whether neighbours share half a patch.

    phase: `all` windows, or of overlapping axes only the `even` (side by side) or the `odd` ones (in between).
    frames: only tiles of these first frames, None for all; the canvas then ends with the last of them.
    """

    pyramid: Pyramid
    level: int
    overlap: tuple[bool, bool, bool]
    window: WindowShape = "uniform"
    phase: Phase = "all"
    frames: int | None = None
    _moved: dict[tuple[str, object], Tensor] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Offsets along each axis."""
        axes = []
        for growth, part, shared in zip(self.pyramid.growth(self.level), self.pyramid.patch, self.overlap, strict=True):
            if shared and growth > 1 and part % 2:
                raise ConfigError(f"a patch side of {part} has no integer half to overlap by")
            last = (growth - 1) * part
            even, odd = range(0, last + 1, part), range(part // 2, last, part)
            if not shared or growth == 1 or self.phase == "even":
                axes.append(tuple(even))
            else:
                axes.append(tuple(sorted({*odd, *((0, last) if self.phase == "odd" else even)})))
        time = tuple(start for start in axes[0] if self.frames is None or start < self.frames)
        return (time, *axes[1:])

    @cached_property
    def extent(self) -> Extent:
        """The canvas (frames, rows, columns)."""
        frames, height, width = self.pyramid.extent(self.level)
        return (min(frames, self.starts[0][-1] + self.pyramid.patch[0]), height, width)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [N, 3], time-major."""
        return np.array(list(product(*self.starts)), dtype=np.int64)

    @property
    def per_time(self) -> int:
        """Tiles of each window in time."""
        return len(self) // len(self.starts[0])

    def __len__(self) -> int:
        return len(self.offsets)

    def phases(self) -> tuple[TileGrid, TileGrid]:
        """The two phases of this grid."""
        return replace(self, phase="even", _moved={}), replace(self, phase="odd", _moved={})

    def parents(self, coarser: TileGrid) -> np.ndarray:
        """int64 [N]: for each tile, the containing tile of the level before whose centre is nearest."""
        axes = [self._axis_parents(coarser, axis) for axis in range(3)]
        t, h, w = np.meshgrid(*axes, indexing="ij")
        return np.ravel_multi_index((t, h, w), [len(starts) for starts in coarser.starts]).ravel()

    def _axis_parents(self, coarser: TileGrid, axis: int) -> np.ndarray:
        """int64 [n]: along one axis, the coarser window that contains each of ours."""
        ratio, part = self.pyramid.ratio(self.level)[axis], self.pyramid.patch[axis]
        ours = np.array(self.starts[axis])
        # [n, m] places of windows relative to each candidate parent, on this level's grid.
        gap = ours[:, None] - ratio * np.array(coarser.starts[axis])[None]
        inside = (gap >= 0) & (gap <= (ratio - 1) * part)
        if not inside.any(-1).all():
            orphan = ours[np.flatnonzero(~inside.any(-1))[0]]
            raise ConfigError(
                f"{AXES[axis]}: the tile at {orphan} of level {self.level} has no containing tile "
                f"on level {coarser.level}",
                hint="use the same overlap on both levels",
            )
        return np.where(inside, np.abs(2 * gap + part - ratio * part), np.iinfo(np.int64).max).argmin(1)

    def gather(self, canvas_BCTHW: Tensor) -> Tensor:
        """All tiles of every canvas, [B * N, C, t, h, w], tiles of one canvas together."""
        rows = torch.arange(len(canvas_BCTHW) * len(self), device=canvas_BCTHW.device)
        return self.gather_rows(canvas_BCTHW, rows)

    def gather_rows(self, canvas_BCTHW: Tensor, rows_R: Tensor) -> Tensor:
        """Those tiles of `gather` that `rows` numbers, [R, C, t, h, w], in one copy."""
        hops = [
            part // 2 if len(starts) > 1 and starts[1] % part else part
            for part, starts in zip(self.pyramid.patch, self.starts, strict=True)
        ]
        windows = canvas_BCTHW
        for axis, (part, hop) in enumerate(zip(self.pyramid.patch, hops, strict=True)):
            windows = windows.unfold(2 + axis, part, hop)
        windows = windows.permute(0, 2, 3, 4, 1, 5, 6, 7)
        steps_N3 = self._on("steps", torch.from_numpy(self.offsets // np.array(hops)), rows_R.device)
        t, h, w = steps_N3[rows_R % len(self)].unbind(1)
        return windows[rows_R // len(self), t, h, w]

    def merge(self, tiles: Tensor) -> Tensor:
        """The weighted average of tiles [B * N, C, t, h, w] on canvases [B, C, T, H, W]."""
        split = tiles.unflatten(0, (-1, *(len(starts) for starts in self.starts)))
        if self.window != "uniform":
            weights = self._on("weights", self.tile_weights, tiles.device).to(tiles.dtype)
            split = split * weights.view(1, *split.shape[1:4], 1, *split.shape[5:])
        total = tiles.new_zeros((len(split), tiles.shape[1], *self.extent))
        # Windows side by side make one solid part of the canvas: added at once.
        for runs in product(*(_runs(s, part) for s, part in zip(self.starts, self.pyramid.patch, strict=True))):
            picks, places = zip(*runs, strict=True)
            piece = split[(slice(None), *picks)].permute(0, 4, 1, 5, 2, 6, 3, 7)
            target = total[(slice(None), slice(None), *places)]
            target += piece.reshape(target.shape)
        if self.window == "uniform" and not self.overlaps:
            return total
        return total / self._on("coverage", self.coverage, tiles.device).to(tiles.dtype)

    @cached_property
    def overlaps(self) -> bool:
        """Whether any place of the canvas lies in two tiles."""
        return any(
            len(s) * part > whole for s, part, whole in zip(self.starts, self.pyramid.patch, self.extent, strict=True)
        )

    @cached_property
    def tile_weights(self) -> Tensor:
        """float32 [N, t, h, w], positive."""
        t, h, w = self._axis_weights
        product_of_axes = torch.einsum("at,bh,cw->abcthw", t, h, w)
        return product_of_axes.flatten(0, 2)

    @cached_property
    def coverage(self) -> Tensor:
        """float32 [1, 1, T, H, W]: the sum of weights at each place."""
        axes = []
        for weights, starts, whole in zip(self._axis_weights, self.starts, self.extent, strict=True):
            line = torch.zeros(whole)
            for row, start in zip(weights, starts, strict=True):
                line[start : start + len(row)] += row
            axes.append(line)
        return torch.einsum("t,h,w->thw", *axes)[None, None]

    @cached_property
    def _axis_weights(self) -> list[Tensor]:
        """Per axis float32 [n, part]: ones, or a raised cosine that stays flat at the canvas border."""
        wholes = self.pyramid.extent(self.level)
        return [
            torch.stack([self._window(start, part, whole, alone=len(starts) == 1) for start in starts])
            for starts, part, whole in zip(self.starts, self.pyramid.patch, wholes, strict=True)
        ]

    def _window(self, start: int, part: int, whole: int, *, alone: bool) -> Tensor:
        row = torch.ones(part)
        if self.window == "uniform" or alone:
            return row
        hill = torch.sin(torch.pi * (torch.arange(part) + 0.5) / part) ** 2
        half = part // 2
        if start > 0:
            row[:half] = hill[:half]
        if start + part < whole:
            row[half:] = hill[half:]
        return row

    def _on(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        """`tensor` on `device`, moved once: a copy in every step would make the host wait."""
        key = (name, device)
        if key not in self._moved:
            self._moved[key] = tensor.to(device)
        return self._moved[key]


def _runs(starts: tuple[int, ...], part: int) -> list[tuple[slice, slice]]:
    """Windows of one axis in runs that lie side by side: which of `starts`, and what they cover together."""
    runs: list[list[int]] = []
    for index, start in enumerate(starts):
        run = next((r for r in runs if starts[r[-1]] + part == start), None)
        if run is None:
            runs.append([index])
        else:
            run.append(index)
    found = []
    for run in runs:
        step = run[1] - run[0] if len(run) > 1 else 1
        found.append((slice(run[0], run[-1] + 1, step), slice(starts[run[0]], starts[run[-1]] + part)))
    return found
