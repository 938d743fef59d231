"""The tests' own tools: what they make is what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.clips import make_store, moving_shapes, write_video


def test_moving_shapes_move_and_depend_on_the_seed() -> None:
    video = moving_shapes(8, (32, 48), seed=1)
    assert (video.shape, video.dtype) == ((8, 32, 48, 3), np.uint8)
    assert np.abs(np.diff(video.astype(int), axis=0)).max() > 20
    assert np.array_equal(video, moving_shapes(8, (32, 48), seed=1))
    assert not np.array_equal(video, moving_shapes(8, (32, 48), seed=2))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_written_videos_decode_to_what_was_written(name: str, codec: str, tmp_path: Path) -> None:
    import av

    video = moving_shapes(6)
    path = write_video(tmp_path / name, video, codec=codec)
    with av.open(str(path)) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == video.shape
    assert np.abs(decoded.astype(int) - video).mean() < 12


def test_a_made_store_holds_synthetic_clips(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", num_clips=3, frames=5, size=(32, 32))
    assert len(store) == 3
    assert store.sizes[0] == (32, 32)
    assert store.read_frames(1).shape == (5, 32, 32, 3)
    assert np.array_equal(store.read_frames(1), moving_shapes(5, (32, 32), index=1))
