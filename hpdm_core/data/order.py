"""Which clip and which part of it each position of the training stream shows.

The stream has no state: position k is a pure function of (seed, k), so that resuming needs one integer and the
number of processes changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hpdm_core.data.store import VideoStore
from hpdm_core.data.window import ClipView, Cut, Window
from hpdm_core.errors import DataError
from hpdm_core.rng import numpy_stream


@dataclass(frozen=True)
class ClipPlan:
    """The clips that training will use, by index in the store, and why the others are not among them."""

    kept: tuple[int, ...]
    dropped: dict[str, int] = field(default_factory=dict)


def plan_clips(
    store: VideoStore,
    view: ClipView,
    frame_stride: int = 1,
    *,
    need_labels: bool = False,
    repeat_images: bool = False,
) -> ClipPlan:
    """Choose the clips that are long enough for `view` at `frame_stride`, and labelled if need be.

    repeat_images: keep clips of one frame, which are shown as still videos.

    Raises StoreMismatch if the store lacks the view's frame sizes, and DataError, naming the rules that removed the
    clips, if none is left.
    """
    store.require_sizes(view.sizes)
    needed = frames_needed(view, frame_stride)
    too_short = f"shorter than {needed} frames"
    if frame_stride > 1:
        too_short += f" ({view.frames} at every {frame_stride})"
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    for clip in store.clips:
        if clip.num_frames < needed and not (repeat_images and clip.num_frames == 1):
            dropped[too_short] += 1
        elif need_labels and clip.label is None:
            dropped["no label"] += 1
        else:
            kept.append(clip.index)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "the store is empty"
        longest = max((clip.num_frames for clip in store.clips), default=0)
        raise DataError(
            f"no clip of {store.path} can be used: {reasons}",
            hint=f"the longest clip has {longest} frames; use a preset with fewer frames, a smaller "
            "data.frame_stride, or longer videos",
        )
    return ClipPlan(tuple(kept), dict(dropped))


def frames_needed(view: ClipView, frame_stride: int) -> int:
    """Stored frames that `view` spans when every `frame_stride`-th is used."""
    return (view.frames - 1) * frame_stride + 1


class StreamOrder:
    """The endless stream over `clips`: every epoch is a new permutation of all of them."""

    def __init__(self, clips: Sequence[int], seed: int) -> None:
        self._clips = np.asarray(clips, dtype=np.int64)
        self._seed = seed
        self._epoch = -1
        self._shuffled = self._clips

    def clip_at(self, position: int) -> int:
        """The index in the store of the clip shown at `position`."""
        epoch, place = divmod(position, len(self._clips))
        if epoch != self._epoch:
            self._shuffled = numpy_stream(self._seed, "data/order", epoch).permutation(self._clips)
            self._epoch = epoch
        return int(self._shuffled[place])


def cut_clip(view: ClipView, num_frames: int, frame_stride: int, random_start: bool, seed: int, position: int) -> Cut:
    """The windows that `view` takes at `position` from a clip of `num_frames` stored frames.

    The view thinks in every `frame_stride`-th frame, from its own frame 0; here its windows are moved to stored frames.
    Windows of an image, a clip of one frame, stay as they are: `still` reads them.
    """
    rng = numpy_stream(seed, "data/window", position)
    if num_frames == 1 and view.frames > 1:
        return view.cut(0, rng)
    slack = num_frames - frames_needed(view, frame_stride)
    start = int(rng.integers(slack + 1)) if random_start else 0
    cut = view.cut(0, rng)
    windows = {name: _to_stored(window, start, frame_stride) for name, window in cut.windows.items()}
    return Cut(windows, cut.meta)


def _to_stored(window: Window, start: int, frame_stride: int) -> Window:
    return replace(window, start=start + window.start * frame_stride, stride=window.stride * frame_stride)
