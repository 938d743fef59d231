"""What matryoshka training reads from a clip, and which rows of a batch run how deep.

Shapes: B rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpdm_core.config.schema import Extent
from hpdm_core.data.window import Cut, Window
from hpdm_core.pyramid.extract import level_name

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class NestView:
    """Whole frames at every level's size, from the first frame on (a `ClipView`). Extents: innermost first.

    A level of fewer frames than the clip shows its first ones: the innermost image of a video nest is frame 0
    (MDM spec §6). `frames` is the whole nest's, so that every phase draws the same clips.
    """

    extents: tuple[Extent, ...]
    frames: int

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The frame size of every level, finest first."""
        return tuple(dict.fromkeys((height, width) for _, height, width in reversed(self.extents)))

    def cut(self, start: int, rng: np.random.Generator) -> Cut:
        """One window per level."""
        windows = {
            level_name(k): Window((height, width), start, 1, frames, 0, 0, height, width)
            for k, (frames, height, width) in enumerate(self.extents)
        }
        return Cut(windows)


def depth_order(positions: Sequence[int], shares: Sequence[float]) -> tuple[list[int], list[int]]:
    """The rows of a mixed-resolution batch, deepest first, and how many of them reach each level.

    shares: per level, the share of all rows that reaches it, not rising. Whether a row does is a function of its
    stream position: the fractional parts of position * golden ratio fill [0, 1) so evenly that every batch has
    its share to within a row or two.
    """
    places = [math.modf((p + 1) * GOLDEN)[0] for p in positions]
    depths = [sum(place < share for share in shares) for place in places]
    order = sorted(range(len(depths)), key=lambda row: -depths[row])
    return order, [sum(depth > k for depth in depths) for k in range(len(shares))]
