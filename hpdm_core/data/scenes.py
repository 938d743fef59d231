"""What the synthetic style `scenes` shows, in words: facts of a clip, its captions, and the pairs held out of training.

A scene is one, two or three like objects with a colour, a shape, a texture and a motion, before a backdrop, seen by
a camera. Facts depend on (seed, index) alone. `scene_video` paints them.

Some (colour, shape) and (shape, motion) pairs are held out: no training clip shows them, though each of their words
is in many. A model that draws them has learned what the words mean and not only which clips it saw.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from hpdm_core.data.paint import BACKDROPS, SHAPES
from hpdm_core.rng import numpy_stream

COLOURS = {
    "red": (0.90, 0.11, 0.13),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (1.00, 0.90, 0.15),
    "green": (0.13, 0.78, 0.22),
    "cyan": (0.10, 0.83, 0.90),
    "blue": (0.12, 0.30, 1.00),
    "purple": (0.66, 0.16, 0.90),
    "white": (0.97, 0.97, 0.97),
}
BACKGROUND_COLOURS = {
    "navy": (0.12, 0.16, 0.30),
    "grey": (0.29, 0.30, 0.32),
    "brown": (0.29, 0.20, 0.15),
    "olive": (0.24, 0.27, 0.15),
    "plum": (0.26, 0.15, 0.23),
    "sand": (0.47, 0.43, 0.35),
}
BACKGROUNDS = tuple(BACKDROPS)
TEXTURES = ("plain", "striped", "checkered", "dotted")
SIZES = ("small", "large")
CAMERAS = ("still", "left", "right")
COUNTS = {1: "a", 2: "two", 3: "three"}
MOTIONS = (
    ("slide", "left"),
    ("slide", "right"),
    ("slide", "up"),
    ("slide", "down"),
    ("orbit", "clockwise"),
    ("orbit", "anticlockwise"),
    ("spin", ""),
    ("grow", ""),
    ("shrink", ""),
    ("bounce", ""),
    ("stay", ""),
)

_ROUND = ("circle", "ring")  # turning does not show on them
_ADVERBS = {"spin": "in place", "stay": "still"}
_COUNT_SHARES = (0.6, 0.25, 0.15)
_TEXTURE_SHARES = (0.4, 0.2, 0.2, 0.2)
_CAMERA_SHARES = (0.5, 0.25, 0.25)


@dataclass(frozen=True, slots=True)
class Scene:
    """The facts of one clip. `size` is empty where it changes, `direction` where the motion has none.

    Motions and directions are those of the picture: a camera that pans moves the background alone.
    """

    count: int
    size: str
    texture: str
    colour: str
    shape: str
    motion: str
    direction: str
    background: str
    background_colour: str
    camera: str


@dataclass(frozen=True, slots=True)
class ScenePrompt:
    """A prompt and the facts of `Scene` that it asks for.

    `pair` names the facts of the pair that it was made for; `held_out` says that training never showed that pair.
    """

    text: str
    facts: Mapping[str, Any]
    pair: tuple[str, ...]
    held_out: bool


def motions_of(shape: str) -> tuple[tuple[str, str], ...]:
    """The (motion, direction) pairs that show on a shape: all but spinning on round ones."""
    return tuple(pair for pair in MOTIONS if not (pair[0] == "spin" and shape in _ROUND))


def draw_scene(seed: int, index: int, given: Mapping[str, Any] | None = None) -> Scene:
    """The facts of clip `index` of the stream `seed`; `given` facts replace drawn ones."""
    draws = iter(numpy_stream(seed, "synthetic/scenes", index).random(9))
    shape = _pick(draws, SHAPES)
    motion, direction = _pick(draws, motions_of(shape))
    facts = {
        "count": _pick(draws, tuple(COUNTS), _COUNT_SHARES),
        "size": _pick(draws, SIZES),
        "texture": _pick(draws, TEXTURES, _TEXTURE_SHARES),
        "colour": _pick(draws, tuple(COLOURS)),
        "shape": shape,
        "motion": motion,
        "direction": direction,
        "background": _pick(draws, BACKGROUNDS),
        "background_colour": _pick(draws, tuple(BACKGROUND_COLOURS)),
        "camera": _pick(draws, CAMERAS, _CAMERA_SHARES),
        **(given or {}),
    }
    if facts["motion"] in ("grow", "shrink"):
        facts["size"] = ""
    elif facts["count"] == 3:
        facts["size"] = "small"
    return Scene(**facts)


def _pick(draws: Iterator[float], choices: tuple[Any, ...], shares: tuple[float, ...] | None = None) -> Any:
    """The choice that the next draw in [0, 1) falls on; `shares` sum to 1, None is equal ones."""
    draw = next(draws)
    if shares is None:
        return choices[int(draw * len(choices))]
    return choices[bisect_right(tuple(accumulate(shares[:-1])), draw)]


def captions_of(scene: Scene, seed: int, index: int) -> tuple[str, ...]:
    """One full sentence, then shorter texts that leave attributes out; clip `index` decides which."""
    sized, textured, kinded = numpy_stream(seed, "synthetic/scenes/captions", index).random(3) < 0.5
    kind = scene.background if kinded else ""
    detailed = _subject(scene, size=bool(sized), texture=bool(textured))
    return (
        f"{_subject(scene, size=True, texture=True)} {_verb(scene)}{_setting(scene, scene.background)}{_camera(scene)}",
        _subject(scene),
        f"{_subject(scene)} {_verb(scene)}",
        f"{detailed}{_setting(scene, kind)}",
    )


def _subject(scene: Scene, *, size: bool = False, texture: bool = False) -> str:
    adjectives = [scene.size if size else "", scene.texture if texture else "", scene.colour]
    noun = scene.shape if scene.count == 1 else f"{scene.shape}s"
    words = " ".join(word for word in (*adjectives, noun) if word)
    return _with_article(words) if scene.count == 1 else f"{COUNTS[scene.count]} {words}"


def _verb(scene: Scene) -> str:
    verb = f"{scene.motion}s" if scene.count == 1 else scene.motion
    return f"{verb} {scene.direction or _ADVERBS.get(scene.motion, '')}".strip()


def _setting(scene: Scene, kind: str) -> str:
    return " over " + _with_article(f"{kind} {scene.background_colour} background".strip())


def _camera(scene: Scene) -> str:
    return "" if scene.camera == "still" else f" while the camera pans {scene.camera}"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def held_out_pairs() -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """The (colour, shape) and the (shape, "motion direction") pairs that no training clip shows."""
    looks = tuple((c, s) for c in COLOURS for s in SHAPES if _look_held_out(c, s))
    moves = tuple((s, f"{m} {d}".strip()) for s in SHAPES for m, d in motions_of(s) if _move_held_out(s, m, d))
    return looks, moves


def is_held_out(scene: Scene) -> bool:
    """Whether a clip belongs to the test part: its (colour, shape) or its (shape, motion) pair is held out."""
    return _look_held_out(scene.colour, scene.shape) or _move_held_out(scene.shape, scene.motion, scene.direction)


def _look_held_out(colour: str, shape: str) -> bool:
    """A diagonal of the colours by shapes, as in a Latin square: one or two colours of each shape."""
    return (list(COLOURS).index(colour) + 2 * SHAPES.index(shape)) % 5 == 0


def _move_held_out(shape: str, motion: str, direction: str) -> bool:
    """A diagonal of the shapes by motions: one to three motions of each shape."""
    return (MOTIONS.index((motion, direction)) + 2 * SHAPES.index(shape)) % 6 == 0


def scene_prompts(held_out: bool) -> tuple[ScenePrompt, ...]:
    """A prompt for each held-out pair, or for each pair that training shows, such as "a red star slides right".

    What completes a pair to a sentence is drawn, the same each time, from pairs that training shows.
    """
    looks = [{"colour": c, "shape": s} for c in COLOURS for s in SHAPES if _look_held_out(c, s) == held_out]
    moves = [
        {"shape": s, "motion": m, "direction": d}
        for s in SHAPES
        for m, d in motions_of(s)
        if _move_held_out(s, m, d) == held_out
    ]
    prompts = [_prompt(pair, held_out, number) for number, pair in enumerate([*looks, *moves])]
    return tuple({prompt.text: prompt for prompt in prompts}.values())  # two pairs may make one sentence


def _prompt(pair: dict[str, Any], held_out: bool, number: int) -> ScenePrompt:
    draws = iter(numpy_stream(0, "synthetic/scenes/prompts", int(held_out), number).random(3))
    shape = pair["shape"]
    motions = tuple(p for p in motions_of(shape) if not _move_held_out(shape, *p))
    motion, direction = _pick(draws, motions)
    colour = _pick(draws, tuple(c for c in COLOURS if not _look_held_out(c, shape)))
    count = _pick(draws, tuple(COUNTS), _COUNT_SHARES)
    facts = {"count": count, "colour": colour, "motion": motion, "direction": direction, **pair}
    scene = draw_scene(0, 0, facts)
    return ScenePrompt(f"{_subject(scene)} {_verb(scene)}", facts, tuple(pair), held_out)
