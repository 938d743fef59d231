"""Reads synthetic `scenes` back from their pixels: what a video shows, for comparing with what its prompt asked for.

    python -m benchmarks.shapes_reader [--num 400] [--out reader.json]

prints how often it reads real clips right: what a perfect model would score.

It is simple vision and knows the palette: objects are more colourful, or brighter, than every background. A video is
first averaged to frames about 36 high, where textures vanish. Colour is that of the most certain pixels; shape
is the outline that fits best over turns; count, motion and direction come from the parts of the mask and their track.

Lengths are in units of the shorter frame side unless a name says pixels.
Shapes: T frames, H W pixels, N turns.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.machine import write_json
from hpdm_core.data.paint import SHAPES, outline_distance
from hpdm_core.data.scenes import COLOURS, draw_scene
from hpdm_core.data.synthetic import render_clip

Array = np.ndarray

ATTRIBUTES = ("colour", "shape", "count", "motion", "direction")
READ_HEIGHT = 36
COLOURFUL = 0.30  # chroma above which a pixel is of an object; no background reaches it
BRIGHT = 0.50  # least channel above which it is, too
MOST = 4  # objects looked at in a frame: one more than a scene has
WINDOW = 33  # side of the pictures in which shapes are compared
TURNS = {"circle": 1, "ring": 1, "square": 6, "triangle": 8, "star": 6}  # per symmetry angle
SYMMETRY = {"circle": 1, "ring": 1, "square": 4, "triangle": 3, "star": 5}
NOTHING = ""

# The ignored reports below are about scipy, which has no types: pyright guesses them from defaults and returns.


@dataclass(frozen=True, slots=True)
class Reading:
    """What a video seems to show, in the words of `hpdm_core.data.scenes`; count 0 and empty words for nothing."""

    count: int = 0
    colour: str = NOTHING
    shape: str = NOTHING
    motion: str = NOTHING
    direction: str = NOTHING


@dataclass(frozen=True, slots=True)
class _Part:
    """One object in one frame: its weight in pixels, its middle (y, x) in pixels, and its picture."""

    weight: float
    centre: Array
    picture: Array


def read_video(video_THWC: Array) -> Reading:
    """Read a uint8 video `[T, H, W, 3]` with a short side of at least 36 pixels or a little less."""
    video = _reduced(video_THWC)
    solid = _is_object(video)
    if solid.sum() < 4 * len(video):
        return Reading()
    colour = _colour(video, solid)
    alpha = _alpha(video, solid, colour)
    frames = [_parts(frame, mask) for frame, mask in zip(alpha, solid, strict=True)]
    seen = [parts for parts in frames if parts]
    if not seen:
        return Reading()
    count = Counter(len(parts) for parts in seen).most_common(1)[0][0]
    usual = [parts for parts in seen if len(parts) == count]
    motion, direction = _motion(usual, min(alpha.shape[1:]))
    return Reading(
        count, _nearest_colour(colour), _shape([part for parts in usual for part in parts]), motion, direction
    )


def _reduced(video: Array) -> Array:
    """Box-filtered to about READ_HEIGHT rows: float32 in [0, 1]."""
    frames, height, width, _ = video.shape
    by = max(min(height, width) // READ_HEIGHT, 1)
    cut = video[:, : height // by * by, : width // by * by].astype(np.float32) / 255
    return cut.reshape(frames, height // by, by, width // by, by, 3).mean(axis=(2, 4))


def _is_object(video: Array) -> Array:
    """Which pixels are surely of an object, `[T, H, W]`."""
    return (np.ptp(video, axis=-1) > COLOURFUL) | (video.min(axis=-1) > BRIGHT)


def _colour(video: Array, solid: Array) -> Array:
    """The objects' mean colour: of pixels whose neighbours are objects too, where there are any."""
    around = ndimage.uniform_filter(solid.astype(np.float32), (0, 3, 3))  # pyright: ignore[reportArgumentType]
    inner = solid & (around > 0.95)
    return np.median(video[inner if inner.sum() > len(video) else solid], axis=0)


def _nearest_colour(colour: Array) -> str:
    """By hue and saturation: a texture or a shadow darkens all channels alike."""
    hue = colour / max(colour.max(), 1e-3)
    return min(COLOURS, key=lambda name: float(np.sum((hue - np.array(COLOURS[name]) / max(COLOURS[name])) ** 2)))


def _alpha(video: Array, solid: Array, colour: Array) -> Array:
    """How much of each pixel is object, `[T, H, W]` in [0, 1]: its place between background and object colour."""
    far = np.logical_not(ndimage.binary_dilation(solid, np.ones((1, 5, 5), bool)))
    behind = np.stack(
        [
            np.median(frame[away], axis=0) if away.any() else frame.min((0, 1))
            for frame, away in zip(video, far, strict=True)
        ]
    )
    behind = behind[:, None, None, :]
    towards = colour - behind
    alpha = np.sum((video - behind) * towards, axis=-1) / np.maximum(np.sum(towards**2, axis=-1), 1e-4)
    near = ndimage.binary_dilation(solid, np.ones((1, 3, 3), bool))
    return np.clip(alpha, 0, 1) * near


def _parts(alpha: Array, solid: Array) -> list[_Part]:
    """The objects of one frame, left to right: the connected pieces at least a third as large as the largest."""
    pieces, num = ndimage.label(solid, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    if num == 0:
        return []
    sizes = ndimage.sum_labels(solid, pieces, np.arange(1, num + 1))
    order = [int(i) for i in np.argsort(-sizes)[:MOST] if sizes[i] >= max(sizes.max() / 3, 3)]
    kept = np.isin(pieces, [i + 1 for i in order])
    found = ndimage.distance_transform_edt(~kept, return_indices=True)
    distance, nearest = found  # pyright: ignore[reportGeneralTypeIssues]
    owner = np.where(distance <= 1.5, pieces[tuple(nearest)], 0)  # soft edges belong to the piece beside them
    weights = [np.where(owner == i + 1, alpha, 0) for i in order]
    parts = [_part(weight) for weight in weights if weight.sum() > 2]
    return sorted(parts, key=lambda part: part.centre[1])


def _part(alpha: Array) -> _Part:
    centre = np.array(ndimage.center_of_mass(alpha))
    middle = (WINDOW - 1) / 2
    corner, size = centre - middle, (WINDOW, WINDOW)
    picture = ndimage.affine_transform(alpha, np.ones(2), corner, size, order=1)  # pyright: ignore[reportArgumentType]
    return _Part(float(alpha.sum()), centre, picture)


def _shape(parts: list[_Part]) -> str:
    """The shape whose outline, of the same area and at its best turn, fits best on average."""
    scores = np.zeros(len(SHAPES))
    for part in parts:
        picture = (part.picture - part.picture.mean()).ravel()
        picture = picture / max(np.linalg.norm(picture), 1e-6)
        for i, shape in enumerate(SHAPES):
            scores[i] += (_templates(shape, round(4 * part.weight**0.5) / 4) @ picture).max() / max(
                np.linalg.norm(picture), 1e-6
            )
    return SHAPES[int(scores.argmax())]


@cache
def _templates(shape: str, root_area: float) -> Array:
    """Masks of one shape at several turns, each of zero mean and unit length: `[N, WINDOW ** 2]`."""
    along = np.arange(WINDOW, dtype=np.float32) - (WINDOW - 1) / 2
    y, x = along[:, None], along[None, :]

    def mask(radius: float, angle: float) -> Array:
        return np.clip(0.5 - outline_distance(shape, radius, y, x, angle), 0, 1)

    radius = root_area * 10 / float(mask(10.0, 0.1).sum()) ** 0.5
    turns = 2 * np.pi / SYMMETRY[shape] * np.arange(TURNS[shape]) / TURNS[shape]
    masks = np.stack([mask(radius, turn).ravel() for turn in turns])
    masks -= masks.mean(axis=1, keepdims=True)
    return masks / np.maximum(np.linalg.norm(masks, axis=1, keepdims=True), 1e-6)


def _motion(frames: list[list[_Part]], unit: int) -> tuple[str, str]:
    """Motion and direction from frames with the same number of objects; `unit` is the pixels per unit."""
    track = np.array([np.mean([part.centre for part in parts], axis=0) for parts in frames]) / unit
    weights = np.array([np.mean([part.weight for part in parts]) for parts in frames])
    if len(frames) < 3:
        return NOTHING, NOTHING
    tail = max(len(frames) // 8, 1)
    growth = weights[-tail:].mean() / weights[:tail].mean()
    if not 1 / 1.6 < growth < 1.6:
        return ("grow" if growth > 1 else "shrink"), NOTHING
    extent = np.ptp(track, axis=0)
    if extent.max() < 0.06:
        return ("spin" if _turns(frames) else "stay"), NOTHING
    y, x = (track - (track.max(axis=0) + track.min(axis=0)) / 2).T
    if extent.min() > 0.35 * extent.max() and abs(turned := _turned(y, x)) > 0.5:
        return "orbit", "clockwise" if turned > 0 else "anticlockwise"
    axis = int(extent[1] >= extent[0])
    net = track[-1, axis] - track[0, axis]
    steps = np.diff(track[:, axis])
    if axis == 0 and abs(steps.sum()) < 0.8 * np.abs(steps).sum():
        return "bounce", NOTHING
    return "slide", (("up", "down"), ("left", "right"))[axis][int(net > 0)]


def _turned(y: Array, x: Array) -> float:
    """Turns about the middle; y points down, so that clockwise is positive."""
    return float(np.diff(np.unwrap(np.arctan2(y, x))).sum() / (2 * np.pi))


def _turns(frames: list[list[_Part]]) -> bool:
    """Whether the pictures of the objects change though they stay."""
    pictures = np.array([np.mean([part.picture for part in parts], axis=0) for parts in frames])
    change = np.abs(pictures - pictures[0]).sum(axis=(1, 2)) / pictures[0].sum()
    return bool(np.max(change) > 0.2)


def asked_of(facts: Mapping[str, object], reading: Reading) -> dict[str, bool]:
    """Whether each attribute that `facts` ask for was read; a direction only where one is asked for."""
    asked = {name: facts[name] for name in ATTRIBUTES if facts.get(name) not in (None, NOTHING)}
    return {name: getattr(reading, name) == value for name, value in asked.items()}


def accuracy(results: Sequence[dict[str, bool]], names: Sequence[str] = ATTRIBUTES) -> dict[str, float]:
    """Share that is right, by name, of the results that have it."""
    asked = {name: [result[name] for result in results if name in result] for name in names}
    return {name: float(np.mean(found)) for name, found in asked.items() if found}


def score_real(num: int, frames: int, size: tuple[int, int], step: int, counts: tuple[int, ...]) -> dict[str, float]:
    """Accuracy on `num` real clips that show one of `counts` objects."""
    results, index = [], 0
    while len(results) < num:
        scene = draw_scene(7, index)
        if scene.count in counts:
            video, info = render_clip(7, index, frames, size, "scenes", step)
            facts = {name: getattr(info.scene, name) for name in ATTRIBUTES}
            results.append(asked_of(facts, read_video(video)))
        index += 1
    return accuracy(results)


def main() -> None:
    """Print accuracy on real clips at the coarse and the fine size and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=400, help="clips of 8x36x64; an eighth of it of 64x288x512")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'':28}" + "".join(f"{name:>11}" for name in ATTRIBUTES))
    for name, counts in (("one object", (1,)), ("two or three", (2, 3))):
        for frames, size, step, num in ((8, (36, 64), 8, args.num), (64, (288, 512), 1, max(args.num // 8, 1))):
            right = score_real(num, frames, size, step, counts)
            rows.append({"objects": list(counts), "frames": frames, "size": list(size), "num": num, **right})
            print(
                f"{f'{name}, {frames}x{size[0]}x{size[1]}':28}" + "".join(f"{right[key]:11.3f}" for key in ATTRIBUTES)
            )
    write_json(args.out, rows)


if __name__ == "__main__":
    main()
