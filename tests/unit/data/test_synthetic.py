"""Procedural clips."""

from __future__ import annotations

import numpy as np
import pytest

from hpdm_core.data.synthetic import CLASSES, COLOURS, render_clip


def test_same_arguments_same_bytes() -> None:
    first, info = render_clip(1, 5, 6, (32, 40))
    again, same = render_clip(1, 5, 6, (32, 40))
    assert first.shape == (6, 32, 40, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert info == same
    assert not np.array_equal(first, render_clip(2, 5, 6, (32, 40))[0])
    assert not np.array_equal(first, render_clip(1, 15, 6, (32, 40))[0])


def test_known_pixels_do_not_drift() -> None:
    """The clips are test data for other parts: changing them changes recorded results."""
    video, info = render_clip(0, 3, 4, (32, 32))
    assert info.caption == (
        "a small orange dotted square orbiting anticlockwise over a gradient grey background, camera panning right"
    )
    assert video.mean() == pytest.approx(114.56, abs=0.1)


def test_labels_cycle_and_captions_name_them() -> None:
    for index in range(2 * len(CLASSES)):
        _, info = render_clip(0, index, 2, (16, 16))
        assert info.label == index % len(CLASSES)
        shape, motion = CLASSES[info.label].split()
        assert shape in info.caption
        assert motion in info.caption
        assert any(colour in info.caption for colour in COLOURS)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (48, 96), (96, 48)])
@pytest.mark.parametrize("frames", [1, 24])
def test_any_size_and_length(size: tuple[int, int], frames: int) -> None:
    video, _ = render_clip(0, 0, frames, size)
    assert video.shape == (frames, *size, 3)
    assert video.std() > 5


def object_centre(video: np.ndarray) -> np.ndarray:
    """Where the picture differs from its median over time, per frame: (y, x) in pixels."""
    change = np.abs(video.astype(int) - np.median(video, axis=0)).sum(-1) > 60
    return np.array([np.argwhere(mask).mean(0) for mask in change])


def test_the_caption_tells_the_direction() -> None:
    sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}
    seen = set()
    for index in range(0, 400, 10):  # sliding circles
        video, info = render_clip(4, index, 24, (64, 64))
        if "panning" in info.caption:
            continue
        direction = info.caption.split("sliding ")[1].split()[0]
        axis, way = sign[direction]
        path = object_centre(video)
        moved = path[-1] - path[0]
        assert np.sign(moved[axis]) == way, info.caption
        assert abs(moved[axis]) > abs(moved[1 - axis]), info.caption
        seen.add(direction)
    assert seen == set(sign)


def test_motion_is_finer_than_a_pixel() -> None:
    """At 12 frames of slow motion, every frame differs from the one before, though few shifts are whole pixels."""
    video, _ = render_clip(0, 0, 64, (32, 32))
    changes = np.abs(np.diff(video.astype(int), axis=0)).sum(axis=(1, 2, 3))
    assert (changes > 0).all()
    assert changes.max() < 6 * np.median(changes)


def test_sizes_show_the_same_scene() -> None:
    """A large rendering, reduced, is the small one: geometry does not depend on the size."""
    large = render_clip(0, 4, 3, (128, 128))[0].astype(float)
    small = render_clip(0, 4, 3, (32, 32))[0].astype(float)
    reduced = large.reshape(3, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(reduced - small).mean() < 4


def test_the_plain_style_has_no_textures_and_a_still_background() -> None:
    for index in range(20):
        video, info = render_clip(0, index, 6, (32, 32), "plain")
        assert "over a gradient" in info.caption
        assert not any(word in info.caption for word in ("panning", "striped", "checkered", "dotted", "small"))
        # Corners that no shape reaches do not change.
        changed = (video != video[0]).any(axis=(0, 3))
        assert not changed.all()
    assert np.array_equal(render_clip(0, 3, 4, (32, 32))[0], render_clip(0, 3, 4, (32, 32), "rich")[0])
