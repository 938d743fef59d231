"""Procedural clips of moving, textured shapes, with labels and captions, from a seed and an index.

They need no files, so that tests, benchmarks and the demo have data whose content is known. Shapes
are signed distance functions evaluated at true sub-pixel positions: edges are antialiased and motion is
as smooth as the frame rate allows, at any frame size.

Lengths are in units of the shorter frame side unless a name says pixels.
Shapes: T frames, H W pixels, N points of a crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Literal

import numpy as np

from hpdm_core.data.paint import SHAPES, Array, Backdrop, outline_distance, paint_backdrop, rotate
from hpdm_core.data.scene_video import render_scene
from hpdm_core.data.scenes import Scene, captions_of, draw_scene, is_held_out
from hpdm_core.rng import numpy_stream

Style = Literal["rich", "plain", "scenes"]

MOTIONS = ("sliding", "orbiting")
CLASSES = tuple(f"{shape} {motion}" for shape in SHAPES for motion in MOTIONS)
FPS = 12.0

COLOURS = {
    "red": (0.89, 0.22, 0.21),
    "orange": (0.97, 0.55, 0.15),
    "yellow": (0.98, 0.83, 0.25),
    "green": (0.25, 0.68, 0.38),
    "teal": (0.11, 0.62, 0.64),
    "blue": (0.20, 0.42, 0.86),
    "purple": (0.55, 0.31, 0.76),
    "pink": (0.95, 0.49, 0.66),
    "white": (0.95, 0.95, 0.93),
}
BACKGROUND_COLOURS = {
    "navy": (0.08, 0.12, 0.27),
    "grey": (0.42, 0.45, 0.48),
    "sand": (0.85, 0.77, 0.62),
    "olive": (0.34, 0.38, 0.20),
    "brown": (0.36, 0.24, 0.18),
    "sky blue": (0.55, 0.74, 0.90),
}
TEXTURES = ("plain", "striped", "checkered", "dotted")
BACKGROUNDS = ("gradient", "cloudy", "tiled", "wavy")
DIRECTIONS = {"right": 0.0, "down": 0.5 * np.pi, "left": np.pi, "up": 1.5 * np.pi}
SIZES = {"small": (0.11, 0.14), "medium": (0.15, 0.19), "large": (0.21, 0.26), "huge": (0.27, 0.32)}
CAMERAS = ("still", "still", "left", "right")


@dataclass(frozen=True, slots=True)
class _Palette:
    """What a style chooses from."""

    sizes: tuple[str, ...]
    textures: tuple[str, ...]
    backgrounds: tuple[str, ...]
    cameras: tuple[str, ...]
    colours: tuple[str, ...] = tuple(COLOURS)
    background_colours: tuple[str, ...] = tuple(BACKGROUND_COLOURS)


_STYLES: dict[Style, _Palette] = {
    "rich": _Palette(("small", "medium", "large"), TEXTURES, BACKGROUNDS, CAMERAS),
    "plain": _Palette(
        ("huge",), ("plain",), ("gradient",), ("still",), ("red", "yellow", "green", "white"), ("navy", "brown")
    ),
}


@dataclass(frozen=True, slots=True)
class SyntheticInfo:
    """What a synthetic clip shows. `label` indexes `classes_of(style)`; `captions` says the same in several ways.

    `scene` holds the facts one by one, in the style `scenes`.
    """

    label: int
    captions: tuple[str, ...]
    fps: float = FPS
    scene: Scene | None = None

    @property
    def caption(self) -> str:
        """The fullest of the captions."""
        return self.captions[0]


@dataclass(frozen=True, slots=True)
class _Object:
    """One moving shape; `texture_scale` is stripes per unit."""

    shape: str
    colour: tuple[float, float, float]
    texture: str
    texture_scale: float
    radius: float
    angle: float
    spin: float


def classes_of(style: Style) -> tuple[str, ...]:
    """The classes of a style: shapes with motions, or in `scenes` shapes alone."""
    return SHAPES if style == "scenes" else CLASSES


def label_of(seed: int, index: int, style: Style) -> int:
    """The class of clip `index`, without painting it."""
    return SHAPES.index(_scene(seed, index).shape) if style == "scenes" else index % len(CLASSES)


_scene = lru_cache(maxsize=1)(draw_scene)  # a scan asks for its split, and then for its label


def scene_indices(seed: int, split: Literal["train", "test", "all"]) -> Iterator[int]:
    """Indices of the clips of the style `scenes`, without end: those of training, of held-out pairs alone, or all."""
    for index in count():
        if split == "all" or is_held_out(_scene(seed, index)) == (split == "test"):
            yield index


def render_clip(
    seed: int, index: int, frames: int, size: tuple[int, int], style: Style = "rich", frame_step: int = 1
) -> tuple[Array, SyntheticInfo]:
    """Render clip `index` of the stream `seed`: uint8 `[T, H, W, 3]` and what it shows.

    The same arguments give the same bytes. Frame i shows time i * `frame_step`.

    rich: any texture, moving cameras; clip `index` has class `index % len(CLASSES)`; paths depend on the length.
    plain: untextured, huge shapes in four colours before a dark, still gradient: what a small model learns in minutes.
    scenes: bold objects that move as the captions say (`hpdm_core.data.scenes`).
    """
    if style == "scenes":
        return _render_scene_clip(seed, index, frames, size, frame_step)
    label = label_of(seed, index, style)
    video, caption = _render_shape(seed, index, CLASSES[label], 1 + (frames - 1) * frame_step, size, _STYLES[style])
    return video[::frame_step], SyntheticInfo(label, (caption,), FPS / frame_step)


def _render_scene_clip(
    seed: int, index: int, frames: int, size: tuple[int, int], frame_step: int
) -> tuple[Array, SyntheticInfo]:
    scene = _scene(seed, index)
    video = render_scene(scene, seed, index, frames, size, frame_step)
    info = SyntheticInfo(SHAPES.index(scene.shape), captions_of(scene, seed, index), FPS / frame_step, scene)
    return video, info


def _render_shape(
    seed: int, index: int, class_name: str, frames: int, size: tuple[int, int], style: _Palette
) -> tuple[Array, str]:
    """The pixels of a clip of the styles `rich` and `plain`, and their caption."""
    rng = numpy_stream(seed, "synthetic", index)
    shape, motion = class_name.split()
    thing, words = _draw_object(rng, shape, style)
    background, pan, scenery = _draw_background(rng, style)
    centres_T2, direction = _draw_path(rng, motion, thing.radius, frames, size)
    video = np.empty((frames, *size, 3), dtype=np.uint8)
    still = _paint_background(background, 0.0, size) if pan == 0.0 else None
    for i in range(frames):
        canvas = _paint_background(background, pan * i, size) if still is None else still.copy()
        _paint_object(canvas, thing, centres_T2[i], thing.angle + thing.spin * i)
        video[i] = np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return video, f"{words} {motion} {direction} over {scenery}"


def _draw_object(rng: np.random.Generator, shape: str, style: _Palette) -> tuple[_Object, str]:
    size_word = str(rng.choice(style.sizes))
    colour = str(rng.choice(style.colours))
    texture = str(rng.choice(style.textures))
    radius = float(rng.uniform(*SIZES[size_word]))
    thing = _Object(
        shape=shape,
        colour=COLOURS[colour],
        texture=texture,
        texture_scale=float(rng.uniform(1.1, 1.7)) / radius,
        radius=radius,
        angle=float(rng.uniform(0, 2 * np.pi)),
        spin=float(rng.choice((-1, 1)) * rng.uniform(0.0, 0.06)),
    )
    words = [size_word, colour] + ([] if texture == "plain" else [texture]) + [shape]
    return thing, "a " + " ".join(words)


def _draw_background(rng: np.random.Generator, style: _Palette) -> tuple[Backdrop, float, str]:
    kind = str(rng.choice(style.backgrounds))
    colour = str(rng.choice(style.background_colours))
    camera = str(rng.choice(style.cameras))
    speed = float(rng.uniform(0.004, 0.012))
    background = Backdrop(
        kind=kind,
        colour=BACKGROUND_COLOURS[colour],
        angle=float(rng.uniform(0, 2 * np.pi)),
        scale=float(rng.uniform(2.5, 4.5)),
        phases=tuple(float(p) for p in rng.uniform(0, 2 * np.pi, 4)),
    )
    pan = {"still": 0.0, "left": -speed, "right": speed}[camera]
    panning = "" if camera == "still" else f", camera panning {camera}"
    return background, pan, f"a {kind} {colour} background{panning}"


def _draw_path(
    rng: np.random.Generator, motion: str, radius: float, frames: int, size: tuple[int, int]
) -> tuple[Array, str]:
    """Centres `[T, 2]` as (y, x), and the words for the direction. The shape stays inside the frame."""
    extent = np.array(size) / min(size)
    times = np.arange(frames) - (frames - 1) / 2
    reach = extent / 2 - radius - 0.02
    jitter = rng.uniform(-0.7, 0.7, 2)
    if motion == "orbiting":
        clockwise = bool(rng.integers(2))
        turn = (1 if clockwise else -1) * rng.uniform(0.10, 0.20) * times + rng.uniform(0, 2 * np.pi)
        orbit = min(reach) * rng.uniform(0.6, 1.0)
        offsets = orbit * np.stack([np.sin(turn), np.cos(turn)], axis=1)
        return extent / 2 + offsets, "clockwise" if clockwise else "anticlockwise"
    word = str(rng.choice(list(DIRECTIONS)))
    along = np.array([np.sin(DIRECTIONS[word]), np.cos(DIRECTIONS[word])]).round(6)
    room = float(abs(along) @ reach)
    speed = min(rng.uniform(0.012, 0.03), 2 * room / max(frames - 1, 1))
    slack = room - speed * (frames - 1) / 2
    middle = extent / 2 + jitter * (reach * (1 - abs(along)) + slack * abs(along))
    return middle + np.outer(times * speed, along), word


def _paint_background(background: Backdrop, pan: float, size: tuple[int, int]) -> Array:
    """The backdrop seen by a camera that has moved `pan` to the right: float32 `[H, W, 3]` in [0, 1]."""
    unit = min(size)
    y = ((np.arange(size[0], dtype=np.float32) + 0.5) / unit)[:, None]
    x = ((np.arange(size[1], dtype=np.float32) + 0.5) / unit + pan)[None, :]
    return paint_backdrop(background, y, x, unit)


def _paint_object(canvas: Array, thing: _Object, centre: Array, angle: float) -> None:
    """Blend the shape and its soft shadow into `canvas` in place; only their bounding box is touched."""
    unit = min(canvas.shape[:2])
    margin = 1.25 * thing.radius + 0.09
    top, left = np.maximum(np.floor((centre - margin) * unit).astype(int), 0)
    bottom, right = np.minimum(np.ceil((centre + margin) * unit).astype(int), canvas.shape[:2])
    if bottom <= top or right <= left:
        return
    y = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / unit - np.float32(centre[0]))[:, None]
    x = ((np.arange(left, right, dtype=np.float32) + 0.5) / unit - np.float32(centre[1]))[None, :]
    box = canvas[top:bottom, left:right]
    shadow = np.clip(0.5 - outline_distance(thing.shape, thing.radius, y - 0.035, x - 0.025, angle) / 0.07, 0, 1)
    box *= 1 - 0.4 * shadow[..., None]
    coverage = np.clip(0.5 - outline_distance(thing.shape, thing.radius, y, x, angle) * unit, 0, 1)[..., None]
    box += coverage * (_surface(thing, y, x, angle, unit) - box)


def _surface(thing: _Object, y: Array, x: Array, angle: float, unit: int) -> Array:
    """The shape's own colour at each point, lit from the upper left: `[N, N, 3]`."""
    v, u = rotate(y, x, angle)
    k = np.pi * thing.texture_scale
    sharp = unit / k
    if thing.texture == "plain":
        pattern = np.zeros_like(v)
    elif thing.texture == "striped":
        pattern = np.clip(np.sin(2 * k * u) * sharp / 2, -1, 1)
    elif thing.texture == "checkered":
        pattern = np.clip(np.sin(k * u) * sharp, -1, 1) * np.clip(np.sin(k * v) * sharp, -1, 1)
    else:
        pattern = np.clip((np.cos(2 * k * u) + np.cos(2 * k * v) - 0.9) * sharp / 3, -1, 1)
    light = 1.0 - 0.22 * (y + x) / np.float32(thing.radius) * 0.5
    base = np.array(thing.colour, dtype=np.float32)
    other = base * 0.42 + 0.05
    blend = (0.5 + 0.5 * pattern if thing.texture != "plain" else pattern)[..., None]
    return np.clip((base + blend * (other - base)) * light[..., None], 0, 1)
