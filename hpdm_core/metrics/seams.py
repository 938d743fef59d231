"""Seams: does a tiled video change more across tile borders than inside tiles?

The ratio compares the mean squared difference of neighbouring samples across borders with that across the few edges on
either side, separately for time, height and width. Near neighbours, since the detail of natural video varies
over the frame. The blocks of JPEG and of most video codecs end every 8 pixels, where tile borders often lie too: in
height and width the same comparison 8 and 16 pixels from the borders is divided out. Real video gives about 1; a
visible seam gives more. The heat-map shows where the excess lies.

Shapes: T frames, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpdm_core.errors import ConfigError
from hpdm_core.metrics.observer import Observer

Axis = Literal["time", "height", "width"]
AXES: tuple[Axis, ...] = ("time", "height", "width")
NEIGHBOURS = 4
BLOCK = 8


@dataclass(frozen=True)
class SeamReport:
    """Border energy over interior energy by axis (axes without a border left out), and their largest."""

    ratios: dict[Axis, float]

    @property
    def worst(self) -> float:
        """The ratio of the axis with the strongest seams; 1.0 where no axis has a border."""
        return max(self.ratios.values(), default=1.0)


def tile_borders(length: int, tile: int, step: int) -> tuple[int, ...]:
    """The edges at which tiles begin or end inside `length`: edge e lies between samples e - 1 and e.

    Tiles start every `step` samples; the last one is moved back to end at `length`, as tile plans do.
    """
    if not 0 < step <= tile:
        raise ConfigError(f"tiles of {tile} cannot be laid {step} apart", hint="the step is at most the tile")
    starts = [*range(0, max(length - tile, 0), step), max(length - tile, 0)]
    edges = {edge for start in starts for edge in (start, start + tile)}
    return tuple(sorted(edge for edge in edges if 0 < edge < length))


def seam_ratio(video_THWC: np.ndarray, borders: dict[Axis, Sequence[int]]) -> SeamReport:
    """Seam ratios of one uint8 or float video. `borders` lists the edges per axis, as `tile_borders` gives them."""
    ratios: dict[Axis, float] = {}
    for number, axis in enumerate(AXES):
        places = {edge - 1 for edge in borders.get(axis, ())}  # edge e is energy e - 1
        energy = _edge_energy(video_THWC, number)
        across, inside = _across_and_inside(energy, places, places)
        if across is None or inside is None:
            continue
        ratio = across / inside if inside > 0 else (1.0 if across == 0 else float("inf"))
        ratios[axis] = ratio if axis == "time" else ratio / _block_contrast(energy, places)
    return SeamReport(ratios)


def _block_contrast(energy: np.ndarray, borders: set[int]) -> float:
    """What codec blocks alone would give: the ratio one and two blocks away from borders; 1 where it has no value."""
    places = {border + step * BLOCK for border in borders for step in (-2, -1, 1, 2)}
    across, inside = _across_and_inside(energy, {p for p in places if 0 <= p < len(energy)} - borders, borders)
    return across / inside if across and inside else 1.0


def _across_and_inside(
    energy: np.ndarray, places: set[int], borders: set[int]
) -> tuple[float, float] | tuple[None, None]:
    """Mean energy at `places`, and over their neighbours that are no borders; None where no place has any."""
    beside: dict[int, list[int]] = {}
    for place in sorted(places):
        around = range(max(place - NEIGHBOURS, 0), min(place + NEIGHBOURS + 1, len(energy)))
        near = [other for other in around if other != place and other not in borders]
        if near:
            beside[place] = near
    if not beside:
        return None, None
    return float(energy[list(beside)].mean()), float(np.mean([energy[near].mean() for near in beside.values()]))


def frame_changes(video_THWC: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame from the one before, in the video's units: float64 [T - 1]."""
    steps = np.diff(np.asarray(video_THWC, dtype=np.float32), axis=0)
    return np.abs(steps).mean(axis=(1, 2, 3), dtype=np.float64)


def join_ratio(video_THWC: np.ndarray, joins: Sequence[int]) -> float:
    """How much more a video changes where its clips join than inside them: 1 for a seamless one.

    joins: the first frame of every clip but the first. A video that stands still has 1, or infinity if only its
    joins move. Raises ConfigError for joins outside the video, and where nothing but joins is left.
    """
    changes = frame_changes(video_THWC)
    if not joins or not all(0 < join <= len(changes) for join in joins) or len(set(joins)) == len(changes):
        raise ConfigError(f"joins {list(joins)} do not divide a video of {len(changes) + 1} frames into clips")
    places = [join - 1 for join in joins]
    across, inside = float(changes[places].mean()), float(np.delete(changes, places).mean())
    return across / inside if inside > 0 else (1.0 if across == 0 else float("inf"))


def seam_heatmap(video_THWC: np.ndarray) -> np.ndarray:
    """Where neighbouring pixels differ more than is usual for the video: float32 [H, W] of mean 1 (0 for a flat one).

    Each pixel holds the larger of its two edges' energies (to the left and above), averaged over frames and divided by
    the mean over the frame, so that videos of flat colour and of noise weigh the same.
    """
    values = np.asarray(video_THWC, dtype=np.float32)
    heat = np.zeros(values.shape[1:3], dtype=np.float32)
    down = np.square(np.diff(values, axis=1)).mean(axis=(0, 3))
    across = np.square(np.diff(values, axis=2)).mean(axis=(0, 3))
    heat[1:] = down
    heat[:, 1:] = np.maximum(heat[:, 1:], across)
    typical = float(heat.mean())
    return heat / typical if typical > 0 else heat


def _edge_energy(video_THWC: np.ndarray, axis: int) -> np.ndarray:
    """Mean squared difference across each edge of one axis: float64 [length - 1]."""
    values = np.asarray(video_THWC, dtype=np.float32)
    squared = np.square(np.diff(values, axis=axis))
    return squared.mean(axis=tuple(a for a in range(4) if a != axis), dtype=np.float64)


def seam_observer(tile: tuple[int, int, int], step: tuple[int, int, int]) -> Observer:
    """The seam ratios of each video by axis, for tiles of (time, height, width) laid `step` apart."""

    def observe(index: int, video_THWC: np.ndarray) -> dict[str, float]:
        borders: dict[Axis, Sequence[int]] = {
            axis: tile_borders(
                video_THWC.shape[i], min(tile[i], video_THWC.shape[i]), min(step[i], video_THWC.shape[i])
            )
            for i, axis in enumerate(AXES)
        }
        return {str(axis): ratio for axis, ratio in seam_ratio(video_THWC, borders).ratios.items()}

    return Observer(observe, {"tile": list(tile), "step": list(step), "neighbours": NEIGHBOURS, "block": BLOCK})
