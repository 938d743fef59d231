"""Levels, offsets and containment of the patch pyramid, in integers (HPDM §3.1).

Level l shows the whole video at growth(l) times the patch per axis: level 0 is one patch that sees all
of it, coarsely; the last level is the video itself. Growth doubles per level and saturates where an axis
has reached its full extent, so axes may differ (16x64x64 patches reach 64x512x512 in four levels, time
standing still at the last). A patch of level l is an integer crop of that level's own grid; nothing is
ever resampled at a fractional position, so the finest target is a bit-exact crop of the source.

Axes are always (time, height, width). L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from hpdm_core.config.schema import Extent
from hpdm_core.errors import ConfigError

AXES = ("time", "height", "width")


@dataclass(frozen=True)
class Pyramid:
    """The pyramid of a `video` (T, H, W) in patches of one size. Raises ConfigError if impossible."""

    video: Extent
    patch: Extent

    def __post_init__(self) -> None:
        for axis, whole, part in zip(AXES, self.video, self.patch, strict=True):
            ratio = whole // max(part, 1)
            if part < 1 or whole < part or whole % part or ratio & (ratio - 1):
                raise ConfigError(
                    f"{axis}: a video of {whole} is not a power of two times a patch of {part}",
                    hint=f"the nearest possible {axis} is {nearest_extent(whole, max(part, 1))}",
                )

    @cached_property
    def num_levels(self) -> int:
        """L = 1 + the doublings of the axis that grows most."""
        return 1 + max((v // p).bit_length() - 1 for v, p in zip(self.video, self.patch, strict=True))

    def growth(self, level: int) -> Extent:
        """How many patches the level's grid spans per axis: min(2^level, video / patch)."""
        self._check(level)
        return _extent(min(2**level, v // p) for v, p in zip(self.video, self.patch, strict=True))

    def extent(self, level: int) -> Extent:
        """The level's whole grid (frames, rows, columns)."""
        return _extent(g * p for g, p in zip(self.growth(level), self.patch, strict=True))

    def step(self, level: int) -> Extent:
        """One grid unit of the level in units of the finest: frame stride and pixel size."""
        return _extent(v // e for v, e in zip(self.video, self.extent(level), strict=True))

    def ratio(self, level: int) -> Extent:
        """Growth from the level before (1 or 2 per axis; 1 everywhere at level 0)."""
        if level == 0:
            return (1, 1, 1)
        return _extent(a // b for a, b in zip(self.growth(level), self.growth(level - 1), strict=True))

    def offset_bounds(self, level: int, parent: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Per axis, the lowest and highest offset of a patch of `level` inside the `parent` patch's window.

        `parent` is an offset on the grid of level - 1, the answer on the grid of `level`.
        """
        bounds = []
        for ratio, part, o in zip(self.ratio(level), self.patch, parent, strict=True):
            bounds.append((ratio * o, ratio * o + (ratio - 1) * part))
        return tuple(bounds)

    def draw_offsets(self, rng: np.random.Generator) -> np.ndarray:
        """Nested offsets, int64 [L, 3], each level's on its own grid, uniform inside its parent."""
        offsets: list[tuple[int, ...]] = [(0, 0, 0)]
        for level in range(1, self.num_levels):
            bounds = self.offset_bounds(level, offsets[-1])
            offsets.append(tuple(int(rng.integers(low, high + 1)) for low, high in bounds))
        return np.array(offsets, dtype=np.int64)

    def parent_chain(self, level: int, offset: tuple[int, ...]) -> np.ndarray:
        """Nested offsets, int64 [level + 1, 3], of windows as centred as possible around one patch.

        The exact context of a tile at sampling time: each coarser window contains the finer one and is
        clamped to the video.
        """
        chain = [tuple(int(o) for o in offset)]
        for finer in range(level, 0, -1):
            chain.insert(0, self._centred_parent(finer, chain[0]))
        return np.array(chain, dtype=np.int64)

    def contains(self, level: int, parent: tuple[int, ...], offset: tuple[int, ...]) -> bool:
        """Whether the patch of `level` at `offset` lies in the patch of level - 1 at `parent`."""
        bounds = self.offset_bounds(level, parent)
        return all(low <= o <= high for o, (low, high) in zip(offset, bounds, strict=True))

    def level_of(self, frames: int | None, size: tuple[int, int] | None) -> int:
        """The level that shows `frames` frames of `size` (height, width); None means any.

        The level of exactly this length and size; else the finest of this size, whose first frames are meant. A
        length alone never chooses a level. ConfigError lists the choices.
        """
        fitting = [k for k in range(self.num_levels) if size is None or tuple(size) == self.extent(k)[1:]]
        for level in fitting if size is not None else ():
            if frames == self.extent(level)[0]:
                return level
        if fitting and (frames is None or frames <= self.extent(fitting[-1])[0]):
            return fitting[-1]
        wanted = f"{frames if frames else 'any number of'} frames of {f'{size[0]}x{size[1]}' if size else 'any size'}"
        sizes = ", ".join("{} frames of {}x{}".format(*self.extent(level)) for level in range(self.num_levels))
        raise ConfigError(f"this model cannot make {wanted}", hint=f"it makes up to {sizes}")

    def _centred_parent(self, level: int, offset: tuple[int, ...]) -> tuple[int, ...]:
        parent = []
        ratios, extent = self.ratio(level), self.extent(level - 1)
        for ratio, part, whole, o in zip(ratios, self.patch, extent, offset, strict=True):
            # Centres agree where (o + part / 2) / ratio = parent + part / 2: rounded, then clamped to contain.
            centred = o if ratio == 1 else -((ratio - 2 * o - part + ratio * part) // (2 * ratio))
            lowest = -(-(o - (ratio - 1) * part) // ratio)
            parent.append(min(max(centred, lowest, 0), o // ratio, whole - part))
        return tuple(parent)

    def _check(self, level: int) -> None:
        if not 0 <= level < self.num_levels:
            raise ConfigError(f"level {level} of a pyramid with levels 0 to {self.num_levels - 1}")


def _extent(values: object) -> Extent:
    return cast(Extent, tuple(values))  # type: ignore[arg-type]


def nearest_extent(whole: int, part: int) -> int:
    """The power-of-two multiple of `part` nearest to `whole`."""
    candidates = [part << k for k in range(24)]
    return min(candidates, key=lambda c: abs(c - whole))
