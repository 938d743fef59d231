"""What PVDM training reads: one clip for the autoencoder, two consecutive ones for the diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpdm_core.config.schema import Extent
from hpdm_core.data.window import Cut, Window

CLIP, PREVIOUS = "clip", "previous"


@dataclass(frozen=True)
class WholeClip:
    """All pixels of `video` = (frames, height, width) consecutive stored frames (a `ClipView`)."""

    video: Extent

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.video[0]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The one frame size."""
        return (self.video[1:],)

    def cut(self, start: int, rng: np.random.Generator) -> Cut:
        """The clip that begins at `start`."""
        return Cut({CLIP: self.window(start)})

    def window(self, start: int) -> Window:
        """The frames of one clip, uncropped."""
        frames, height, width = self.video
        return Window((height, width), start, 1, frames, 0, 0, height, width)


@dataclass(frozen=True)
class ClipPair:
    """A clip and the frames before it, from twice a clip's frames.

    A share of `conditional` items learn the second half given the first. The others learn a clip at any
    offset given nothing; their `previous` is read and not used. `meta["conditional"]` is 0 or 1.
    """

    video: Extent
    conditional: float

    @property
    def frames(self) -> int:
        """Frames of two clips."""
        return 2 * self.video[0]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The one frame size."""
        return (self.video[1:],)

    def cut(self, start: int, rng: np.random.Generator) -> Cut:
        """Both clips of one item; each item draws for itself whether it sees the clip before."""
        single, length = WholeClip(self.video), self.video[0]
        conditional = bool(rng.random() < self.conditional)
        offset = length if conditional else int(rng.integers(length + 1))
        windows = {CLIP: single.window(start + offset), PREVIOUS: single.window(start)}
        return Cut(windows, {"conditional": np.asarray(conditional, np.int64)})
