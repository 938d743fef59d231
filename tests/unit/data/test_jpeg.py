"""A box of many JPEG frames has exactly the pixels of decoding them whole, and costs much less."""

import io

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data import jpeg
from hpdm_core.data.jpeg import Box, DamagedFrame, encode_jpeg, read_box
from hpdm_core.data.synthetic import render_clip


def whole(blobs):
    """The frames as any JPEG decoder reads them."""
    return np.stack([np.asarray(Image.open(io.BytesIO(blob.tobytes()))) for blob in blobs])


def encoded(video):
    return [np.frombuffer(encode_jpeg(frame), dtype=np.uint8) for frame in video]


def without_markers(video):
    """Frames as stores held them before segments."""
    blobs = []
    for frame in video:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=jpeg.QUALITY, subsampling=0)
        blobs.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    return blobs


@pytest.fixture
def decoded_pixels(monkeypatch):
    """The number of pixels of every image that was decoded."""
    seen, decode = [], jpeg._decoded

    def counted(blob, index):
        pixels = decode(blob, index)
        seen.append(pixels.shape[0] * pixels.shape[1])
        return pixels

    monkeypatch.setattr(jpeg, "_decoded", counted)
    return seen


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (90, 107), (40, 288), (8, 8), (5, 3), (33, 72)])
def test_every_box_equals_the_whole_frames(size):
    noise = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    blobs = encoded(noise)
    full = whole(blobs)
    rng = np.random.default_rng(1)
    for _ in range(20):
        height, width = (int(rng.integers(1, side + 1)) for side in size)
        top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        found = read_box(blobs, Box(top, left, height, width))
        assert np.array_equal(found, full[:, top : top + height, left : left + width])


def test_markers_change_no_pixel_and_older_frames_stay_readable(decoded_pixels):
    video = render_clip(0, 1, 4, (64, 96))[0]
    new, old = encoded(video), without_markers(video)
    assert np.array_equal(whole(new), whole(old))
    box = Box(10, 20, 32, 40)
    assert np.array_equal(read_box(old, box), read_box(new, box))
    assert decoded_pixels == [64 * 96] * 4 + [4 * (40 * 64)]
    mixed = [new[0], old[1], new[2]]
    assert np.array_equal(read_box(mixed, box), read_box(new[:3], box))


def test_a_patch_decodes_only_the_segments_that_it_touches(decoded_pixels):
    blobs = encoded(render_clip(0, 1, 16, (256, 256))[0])
    read_box(blobs, Box(100, 130, 64, 64))
    assert decoded_pixels == [16 * 72 * 96]  # rows 96 to 168, columns 128 to 224


def test_long_clips_are_decoded_in_parts(decoded_pixels, monkeypatch):
    monkeypatch.setattr(jpeg, "MAX_HEIGHT", 50)
    blobs = encoded(render_clip(0, 1, 7, (16, 32))[0])
    assert np.array_equal(read_box(blobs, Box(0, 0, 16, 32)), whole(blobs))
    assert decoded_pixels == [3 * 16 * 32, 3 * 16 * 32, 16 * 32]


@pytest.mark.parametrize("kept", [0, 300, 0.6])
def test_a_damaged_frame_is_named(kept):
    blobs = encoded(render_clip(0, 1, 3, (64, 64))[0])
    length = kept if isinstance(kept, int) else int(kept * len(blobs[1]))
    blobs[1] = blobs[1][:length]
    with pytest.raises(DamagedFrame) as caught:
        read_box(blobs, Box(8, 8, 48, 48))
    assert caught.value.index == 1


def test_no_frames_make_an_empty_video():
    assert read_box([], Box(0, 0, 4, 5)).shape == (0, 4, 5, 3)
