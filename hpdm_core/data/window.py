"""What training asks of a clip: which frames and which pixels, named by model component.

A *view* belongs to a model family and says what one training item of it looks like; the dataset cuts
the view's windows out of a store and never learns what they are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # preparing a store reads windows and should not pay for torch
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A box of one clip: frames `start + i * stride` for i < `frames`, at frame size `size`, cropped.

    `size` is (H, W) of the store's spatial level to read; `top, left, height, width` are pixels of it.
    """

    size: tuple[int, int]
    start: int
    stride: int
    frames: int
    top: int
    left: int
    height: int
    width: int

    @property
    def last_frame(self) -> int:
        """Index of the last frame read."""
        return self.start + (self.frames - 1) * self.stride


@dataclass(frozen=True, slots=True)
class Cut:
    """The windows of one training item by component name, and integers about them (patch offsets)."""

    windows: Mapping[str, Window]
    meta: Mapping[str, np.ndarray] = field(default_factory=dict)


class ClipView(Protocol):
    """What a family reads from one clip per training item."""

    @property
    def frames(self) -> int:
        """Shortest usable clip, in stored frames (after the data section's frame stride)."""
        ...

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Frame sizes (H, W) that the store must hold, finest first."""
        ...

    def cut(self, start: int, rng: np.random.Generator) -> Cut:
        """Choose the windows of one item within the `frames` frames that begin at `start`."""
        ...


@dataclass
class Batch:
    """One micro-batch. B rows; row b is position `positions[b]` of the global data stream.

    videos: float32 [B, 3, T, H, W] in [-1, 1] by component name (T, H, W may differ between components).
    meta: integers from the view, [B, ...]; labels: int64 [B], -1 where there is none.
    captions: one string per row, empty where there is none.
    text: what a model is given of the captions (numbers, or a frozen encoder's states), [B, ...] by name; may be empty.
    """

    videos: dict[str, Tensor]
    meta: dict[str, Tensor]
    labels: Tensor
    captions: list[str]
    positions: list[int]
    text: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return Batch(
            videos={k: v.to(device, non_blocking=True) for k, v in self.videos.items()},
            meta={k: v.to(device, non_blocking=True) for k, v in self.meta.items()},
            labels=self.labels.to(device, non_blocking=True),
            captions=self.captions,
            positions=self.positions,
            text={k: v.to(device, non_blocking=True) for k, v in self.text.items()},
        )
