"""Painting the synthetic style `scenes`: from facts to frames, fast enough to make tens of thousands of clips.

The picture at time t depends on (scene, seed, index) and t alone. Frame sizes of one aspect ratio show the same thing,
and a clip of every n-th frame shows the frames of the whole clip: a coarse clip is the fine one, averaged.

What makes it fast: a backdrop is painted once, wide enough for the camera, and objects are stamps that are painted
once for each turn, size and sub-pixel position. Positions are whole pixels of frames 288 high, so there a
sliding star is painted once a clip.

Lengths are in units of the shorter frame side unless a name says pixels. Times are frames of the NOMINAL_FRAMES
in which a motion is complete; what has arrived by then waits.
Shapes: T frames, N objects, H W pixels, C = 3 channels, S side of a stamp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from hpdm_core.data.paint import Array, Backdrop, outline_distance, paint_backdrop, rotate
from hpdm_core.data.scenes import BACKGROUND_COLOURS, COLOURS, Scene
from hpdm_core.rng import numpy_stream

NOMINAL_FRAMES = 64
GRID = 288  # positions are whole pixels of frames this high
PAN = 2 / GRID  # of the camera, per time
TEXTURE_PERIOD = 10 / GRID  # 1.25 pixels, so nearly invisible, in frames 36 high; 10 in frames 288 high

_RADII = {1: {"small": (0.14, 0.16), "large": (0.23, 0.26)}, 2: {"small": (0.14, 0.16), "large": (0.19, 0.21)}}
_RADII[3] = {"small": (0.13, 0.15), "large": (0.13, 0.15)}
_RELATIVE_RADIUS = {"circle": 0.92, "square": 0.98, "triangle": 1.12, "star": 1.22, "ring": 1.0}
_BOUND = 1.22  # the farthest that an outline reaches, over the radius
_GAP = 0.05
_MARGIN = 0.03  # to the edge of the frame
_GROWTH = 0.55  # smallest over largest radius
_SHADOW_SHIFT = (0.035, 0.025)
_SHADOW_BLUR = 0.07
_SHADOW = 0.4  # of the light that it takes
_DARKNESS = 0.5  # of the light that the dark parts of a texture take


@dataclass(frozen=True, slots=True)
class _Course:
    """Where the group is and how it looks at each time: centres `[T, 2]` as (y, x), turns and sizes `[T]`."""

    centres: Array
    angles: Array
    radii: Array


def render_scene(scene: Scene, seed: int, index: int, frames: int, size: tuple[int, int], frame_step: int = 1) -> Array:
    """Frames at times 0, `frame_step`, 2 `frame_step` …: uint8 `[T, H, W, 3]`.

    (`seed`, `index`) decides what the facts leave open: exact sizes, places, speeds, phases.
    """
    times = np.arange(frames) * frame_step
    rng = numpy_stream(seed, "synthetic/scenes/look", index)
    extent = np.array(size) / min(size)
    radius, spacing = _group(scene, float(rng.random()), extent)
    offsets_N2 = np.outer((np.arange(scene.count) - (scene.count - 1) / 2) * spacing, (0, 1))
    half = _BOUND * radius + offsets_N2[-1]
    course = _course(scene, rng, times, radius, extent, np.maximum(extent / 2 - half - _MARGIN, 0))
    video = _backgrounds(scene, rng, times, size)
    stamps = _Stamps(scene, min(size))
    pixels_TN2 = np.round((course.centres[:, None] + offsets_N2) * GRID) / GRID * min(size)
    corners_TN2 = np.floor(pixels_TN2 + 1e-6).astype(int)
    rests_TN2 = np.round(pixels_TN2 - corners_TN2, 4)
    looks = zip(course.angles.tolist(), course.radii.tolist(), strict=True)
    for frame, corners, rests, look in zip(video, corners_TN2.tolist(), rests_TN2.tolist(), looks, strict=True):
        for corner, rest in zip(corners, rests, strict=True):
            stamps.press(frame, corner, (*rest, *look))
    return video


def _group(scene: Scene, draw: float, extent: Array) -> tuple[float, float]:
    """Radius and spacing of the objects, which stand in a row; smaller where the frame is too narrow for them."""
    low, high = _RADII[scene.count][scene.size or "large"]
    radius = low + draw * (high - low)
    widest = (extent[1] - 0.1 - (scene.count - 1) * _GAP) / (2 * _BOUND * scene.count)
    radius = min(radius, float(widest))
    spacing = 2 * _BOUND * radius + _GAP
    return radius, np.floor(spacing * 36) / 36  # whole pixels of frames 36 high: like objects share a stamp


def _course(
    scene: Scene, rng: np.random.Generator, times: Array, radius: float, extent: Array, reach: Array
) -> _Course:
    """The motion; `reach` is how far from the middle of the frame the centre of the group may be, (y, x)."""
    progress = np.minimum(times / (NOMINAL_FRAMES - 1), 1.0)
    pace, slack, tilt, *place = rng.random(5)
    spread = 2 * np.array(place) - 1
    way = 1.0 if rng.random() < 0.5 else -1.0
    offsets = np.tile(0.8 * spread * reach, (len(times), 1))
    angles = np.full(len(times), 0.4 * (tilt - 0.5) + _UPRIGHT.get(scene.shape, 0.0))
    radii = np.full(len(times), radius)
    if scene.motion == "slide":
        axis, sign = _AXES[scene.direction]
        travel = (0.75 + 0.25 * pace) * 2 * reach[axis]
        offsets[:, axis] = sign * travel * (progress - 0.5) + (slack - 0.5) * (2 * reach[axis] - travel)
    elif scene.motion == "orbit":
        orbit = (0.85 + 0.15 * pace) * min(reach)
        turn = (1 if scene.direction == "clockwise" else -1) * 2 * np.pi * (0.85 + 0.25 * slack) * progress
        turn = turn + np.pi * spread[0]
        middle = 0.8 * spread[1] * (reach - orbit)
        offsets = middle + orbit * np.stack([np.sin(turn), np.cos(turn)], axis=1)
    elif scene.motion == "spin":
        angles += way * (1.8 + 0.6 * pace) * progress
    elif scene.motion in ("grow", "shrink"):
        share = progress if scene.motion == "grow" else 1 - progress
        radii = radius * (_GROWTH + (1 - _GROWTH) * share)
    elif scene.motion == "bounce":
        beat = np.mod((1.6 + 0.6 * pace) * progress + slack, 1.0)
        offsets[:, 0] = reach[0] - (0.85 + 0.15 * tilt) * 2 * reach[0] * 4 * beat * (1 - beat)
    return _Course(extent / 2 + offsets, angles, radii)


_AXES = {"up": (0, -1), "down": (0, 1), "left": (1, -1), "right": (1, 1)}
_UPRIGHT = {"star": -np.pi / 2}  # a point on top


def _backgrounds(scene: Scene, rng: np.random.Generator, times: Array, size: tuple[int, int]) -> Array:
    """The video without objects: windows of one wide picture."""
    height, width = size
    unit = min(size)
    angle, scale, *phases = rng.random(6)
    backdrop = Backdrop(
        kind=scene.background,
        colour=BACKGROUND_COLOURS[scene.background_colour],
        angle=float(2 * np.pi * angle),
        scale=float(2.5 + 2 * scale),
        phases=tuple(float(2 * np.pi * p) for p in phases),
    )
    shifts = {"still": 0.0, "right": PAN * unit, "left": -PAN * unit}[scene.camera] * times
    first, last = int(np.floor(shifts.min())), int(np.ceil(shifts.max()))
    y = ((np.arange(height, dtype=np.float32) + 0.5) / unit)[:, None]
    x = ((np.arange(first, last + width, dtype=np.float32) + 0.5) / unit)[None, :]
    wide = np.rint(255 * paint_backdrop(backdrop, y, x, unit)).astype(np.uint8)
    video = np.empty((len(times), height, width, 3), dtype=np.uint8)
    for frame, shift in zip(video, shifts - first, strict=True):
        start, rest = int(shift + 1e-6), shift - int(shift + 1e-6)
        frame[:] = wide[:, start : start + width]
        if rest > 1e-6:
            frame[:] = np.rint(frame * (1 - rest) + wide[:, start + 1 : start + 1 + width] * rest)
    return video


class _Stamps:
    """Pictures of the object with its soft shadow, each painted once."""

    def __init__(self, scene: Scene, unit: int) -> None:
        self._scene, self._unit = scene, unit
        self._painted = cache(self._paint)

    def press(self, frame: Array, corner: Sequence[int], look: tuple[float, float, float, float]) -> None:
        """Blend the object into `frame`, uint8 `[H, W, 3]`, in place.

        Its centre is `corner`, the (y, x) of a pixel, and the first two of `look`, parts of one; then angle and radius.
        """
        keep, add = self._painted(*look)
        half = len(keep) // 2
        first_y, first_x = corner[0] - half, corner[1] - half
        rows = slice(max(first_y, 0), min(first_y + 2 * half, frame.shape[0]))
        columns = slice(max(first_x, 0), min(first_x + 2 * half, frame.shape[1]))
        crop = np.s_[rows.start - first_y : rows.stop - first_y, columns.start - first_x : columns.stop - first_x]
        box = frame[rows, columns]
        mixed = box * keep[crop]
        mixed += add[crop]
        box[:] = mixed

    def _paint(self, rest_y: float, rest_x: float, angle: float, radius: float) -> tuple[Array, Array]:
        """What is kept of the picture and what is added to it in 0..255, both `[S, S, 3]`: equal shapes mix fast."""
        outline = radius * _RELATIVE_RADIUS[self._scene.shape]
        half = int(np.ceil((_BOUND * radius + max(_SHADOW_SHIFT) + _SHADOW_BLUR / 2) * self._unit)) + 1
        along = np.arange(-half, half, dtype=np.float32) + np.float32(0.5)
        y, x = ((along - rest_y) / self._unit)[:, None], ((along - rest_x) / self._unit)[None, :]
        dy, dx = np.array([(0, 0), _SHADOW_SHIFT], dtype=np.float32).T[..., None, None]
        object_distance, shadow_distance = outline_distance(self._scene.shape, outline, y - dy, x - dx, angle)
        coverage = np.clip(0.5 - object_distance * self._unit, 0, 1)
        shadow = np.clip(0.5 - shadow_distance / _SHADOW_BLUR, 0, 1)
        keep = (1 - _SHADOW * shadow) * (1 - coverage)
        light = (1 - 0.1 * (y + x) / radius) * (1 - _DARKNESS * _pattern(self._scene.texture, y, x, angle, self._unit))
        colour_C11 = np.array(COLOURS[self._scene.colour], dtype=np.float32)[:, None, None]
        add_CSS = 255 * coverage * np.minimum(light * colour_C11, 1) + 0.5  # rounds, as uint8 cuts
        return np.repeat(keep[..., None], 3, axis=-1), np.ascontiguousarray(np.moveaxis(add_CSS, 0, -1))


def _pattern(texture: str, y: Array, x: Array, angle: float, unit: int) -> Array:
    """How dark the texture is at each point, in [0, 1]: its mean where a pixel is wider than it can show."""
    if texture == "plain":
        return np.zeros_like(y * x)
    v, u = rotate(y, x, angle)
    k = np.float32(2 * np.pi / TEXTURE_PERIOD)
    return 0.5 + 0.5 * _visible(unit) * np.clip(_WAVES[texture](k * v, k * u) * unit / float(k), -1, 1)


@cache
def _visible(unit: int) -> float:
    """The amplitude of a sine of the period of textures, averaged over a pixel."""
    return max(float(np.sinc(1 / (unit * TEXTURE_PERIOD))), 0.0)


_WAVES: dict[str, Callable[[Array, Array], Array]] = {
    "striped": lambda v, u: np.sin(u),
    "checkered": lambda v, u: np.sin(0.5 * u) * np.sin(0.5 * v) * 2,
    "dotted": lambda v, u: np.cos(0.7 * u) + np.cos(0.7 * v) - 0.7,
}
