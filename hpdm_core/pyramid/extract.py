"""Cutting patches: the view that training reads from a store, and level videos from a whole clip (§1.2).

Shapes: B batch, L levels, C channels, T H W frames and pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from hpdm_core.data.window import Cut, Window
from hpdm_core.pyramid.geometry import Pyramid


def level_name(level: int) -> str:
    """The component name of a level, in batches, logs and stages."""
    return f"level{level}"


@dataclass(frozen=True)
class PatchView:
    """What one HPDM training item reads: one patch per level, nested, all of one clip (a `ClipView`)."""

    pyramid: Pyramid

    @property
    def frames(self) -> int:
        """Frames of the finest level."""
        return self.pyramid.video[0]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The frame size of every level read, finest first."""
        found = [self.pyramid.extent(level)[1:] for level in reversed(range(self.pyramid.num_levels))]
        return tuple(dict.fromkeys(found))

    def cut(self, start: int, rng: np.random.Generator) -> Cut:
        """Nested windows at random offsets; `meta["offsets"]` is int64 [L, 3]."""
        offsets = self.pyramid.draw_offsets(rng)
        windows = {}
        for level in range(self.pyramid.num_levels):
            t, top, left = (int(o) for o in offsets[level])
            frames, height, width = self.pyramid.patch
            stride = self.pyramid.step(level)[0]
            size = self.pyramid.extent(level)[1:]
            windows[level_name(level)] = Window(size, start + t * stride, stride, frames, top, left, height, width)
        return Cut(windows, {"offsets": offsets})


def level_video(video_BCTHW: Tensor, pyramid: Pyramid, level: int) -> Tensor:
    """The whole video as `level` shows it: strided frames, box-averaged pixels."""
    step_t, step_h, step_w = pyramid.step(level)
    strided = video_BCTHW[:, :, ::step_t]
    return strided if step_h == step_w == 1 else F.avg_pool3d(strided, (1, step_h, step_w))


def crop(canvas_BCTHW: Tensor, offset: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The window of size `patch` at `offset` (t, h, w), a view."""
    (t, h, w), (pt, ph, pw) = offset, patch
    return canvas_BCTHW[:, :, t : t + pt, h : h + ph, w : w + pw]
