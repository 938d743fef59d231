"""What synthetic clips are painted with: outlines as signed distances, backdrops as formulas.

Both are evaluated at true positions rather than on a grid of pixels, so that a picture looks alike at every size.

Lengths are in units of the shorter frame side unless a name says pixels. Arrays are float32; `y` is a column of
positions and `x` a row, or both are full grids. Angles are in radians.
Shapes: H W pixels, N points of a crop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

SHAPES = ("circle", "square", "triangle", "star", "ring")


@dataclass(frozen=True, slots=True)
class Backdrop:
    """One background: a kind of BACKDROPS, its base colour, and the numbers of its formula."""

    kind: str
    colour: tuple[float, float, float]
    angle: float
    scale: float
    phases: tuple[float, ...]


def paint_backdrop(backdrop: Backdrop, y: Array, x: Array, unit: int) -> Array:
    """Colours at the points, `[H, W, 3]` in [0, 1]; `unit` is the pixels per unit, for edges as soft as a pixel."""
    shade = BACKDROPS[backdrop.kind](backdrop, y, x, unit)
    base = np.array(backdrop.colour, dtype=np.float32)
    return np.clip(base * (0.78 + 0.44 * shade[..., None]), 0, 1, dtype=np.float32)


def _gradient(backdrop: Backdrop, y: Array, x: Array, unit: int) -> Array:
    slope = np.cos(backdrop.angle) * (x - 0.5) + np.sin(backdrop.angle) * (y - 0.5)
    return 0.5 + 0.5 * np.sin(1.6 * slope + backdrop.phases[0])


def _cloudy(backdrop: Backdrop, y: Array, x: Array, unit: int) -> Array:
    k, (a, b, c, d) = 2.1 * backdrop.scale, backdrop.phases
    rows, columns = np.sin(0.9 * k * y + a), np.cos(0.8 * k * x + b)
    return 0.5 + 0.25 * (np.sin(k * x + 1.7 * rows + c) + np.sin(1.3 * k * y + 1.9 * columns + d))


def _tiled(backdrop: Backdrop, y: Array, x: Array, unit: int) -> Array:
    k = np.pi * backdrop.scale
    sharp = unit / k
    across = np.clip(np.sin(k * x + backdrop.phases[0]) * sharp, -1, 1)
    down = np.clip(np.sin(k * y + backdrop.phases[1]) * sharp, -1, 1)
    return 0.5 + 0.35 * across * down


def _wavy(backdrop: Backdrop, y: Array, x: Array, unit: int) -> Array:
    bend = 0.08 * np.sin(2 * np.pi * x * 1.3 + backdrop.phases[0])
    return 0.5 + 0.45 * np.sin(2 * np.pi * backdrop.scale * (y + bend) + backdrop.phases[1])


BACKDROPS: dict[str, Callable[[Backdrop, Array, Array, int], Array]] = {
    "gradient": _gradient,
    "cloudy": _cloudy,
    "tiled": _tiled,
    "wavy": _wavy,
}


def rotate(y: Array, x: Array, angle: float) -> tuple[Array, Array]:
    """The points in the axes of something turned by `angle`: (v, u) for (y, x)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * y - sin * x, sin * y + cos * x


def outline_distance(shape: str, radius: float, y: Array, x: Array, angle: float) -> Array:
    """Signed distance to the outline of one of SHAPES about the origin (negative inside), exact near the edge."""
    if shape == "circle":
        return np.hypot(y, x) - radius
    if shape == "ring":
        return np.abs(np.hypot(y, x) - 0.72 * radius) - 0.28 * radius
    v, u = rotate(y, x, angle)
    if shape == "square":
        side = 0.76 * radius
        outside = np.hypot(np.maximum(np.abs(v) - side, 0), np.maximum(np.abs(u) - side, 0))
        return outside + np.minimum(np.maximum(np.abs(v), np.abs(u)) - side, 0) - 0.12 * radius
    if shape == "triangle":
        return _polygon(v, u, 3, 0.52 * radius)
    return _star(v, u, radius)


def _polygon(v: Array, u: Array, sides: int, apothem: float) -> Array:
    """Regular polygon as the largest of its half-plane distances."""
    turns = 2 * np.pi * np.arange(sides) / sides
    planes = [np.float32(np.cos(t)) * v + np.float32(np.sin(t)) * u for t in turns]
    return np.maximum.reduce(planes) - np.float32(apothem)


def _star(v: Array, u: Array, radius: float) -> Array:
    """Five points: each point is folded onto one edge of the outline, by symmetry."""
    fold = np.pi / 5
    bearing = np.arctan2(v, u)
    around = np.abs(np.mod(bearing + fold, 2 * fold) - fold)
    length = np.hypot(v, u)
    inner = 0.5 * radius
    edge = np.array([inner * np.cos(fold) - radius, inner * np.sin(fold)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return np.float32(normal[0]) * (length * np.cos(around) - radius) + np.float32(normal[1]) * length * np.sin(around)
