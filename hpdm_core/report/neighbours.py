"""The nearest real clip of each sample in a feature space, to see what was learned and what was copied.

The space is that of the seeded random I3D (`metrics/detectors.py`): it needs no weights and ranks clips by their
look; its distances mean something only against each other.

Shapes: N clips, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hpdm_core.data.store import VideoStore
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.features import Job, extract
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.report.reading import ShownClip
from hpdm_core.video import resize_frames

DETECTOR = "random-i3d"


@dataclass(frozen=True)
class Neighbour:
    """A real clip and how far it is: 1 is the typical distance of a real clip to its own nearest one."""

    clip: ShownClip
    distance: float


def nearest_real(
    clips: Sequence[ShownClip],
    store: VideoStore,
    *,
    limit: int,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> list[Neighbour]:
    """For each of `clips` the nearest of `limit` real clips, spread evenly over the store.

    Clips are compared at their common length and the samples' size. Empty if they are too short for the network, or
    the store has fewer than two clips that long.
    """
    detector = build_detector(DetectorSection(name=DETECTOR), weights=None, device=device)
    frames = min(len(clip.video) for clip in clips)
    usable = [info.index for info in store.clips if info.num_frames >= frames]
    if frames < detector.min_frames or len(usable) < 2:
        return []
    spread = np.linspace(0, len(usable) - 1, min(limit, len(usable))).round().astype(int)
    chosen = [usable[i] for i in dict.fromkeys(spread.tolist())]
    height, width = clips[0].video.shape[1:3]

    def prepared() -> Iterator[np.ndarray]:
        yield from (_sized(clip.video[:frames], (height, width)) for clip in clips)
        yield from (_real(store, index, frames, (height, width)) for index in chosen)

    found = extract(prepared(), {"real": Job(detector)}, batch_size=4, device=device, advance=advance)
    rows = found["real"].features.astype(np.float64)
    distances, typical = relative_distances(rows[: len(clips)], rows[len(clips) :])
    best = distances.argmin(axis=1)
    return [
        Neighbour(_shown(store, chosen[b], frames, (height, width), clips[i]), float(distances[i, b] / typical))
        for i, b in enumerate(best)
    ]


def relative_distances(samples_ND: np.ndarray, real_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """Distances [samples, real], and the median distance of a real clip to its nearest other real clip."""
    between = np.linalg.norm(real_ND[:, None] - real_ND[None], axis=-1)
    np.fill_diagonal(between, np.inf)
    typical = float(np.median(between.min(axis=1)))
    return np.linalg.norm(samples_ND[:, None] - real_ND[None], axis=-1), typical or 1.0


def _real(store: VideoStore, index: int, frames: int, size: tuple[int, int]) -> np.ndarray:
    level = size if size in store.sizes else None
    return _sized(store.read_frames(index, level, num_frames=frames), size)


def _shown(store: VideoStore, index: int, frames: int, size: tuple[int, int], like: ShownClip) -> ShownClip:
    info = store.clips[index]
    caption = info.captions[0] if info.captions else info.id
    return ShownClip(_real(store, index, frames, size), caption, like.fps)


def _sized(video_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize_frames(video_THWC, size)
