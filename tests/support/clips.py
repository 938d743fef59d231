"""Small videos and small stores for tests. Everything is made from a seed; nothing is read from outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.data.store import VideoStore
from hpdm_core.data.synthetic import render_clip
from hpdm_core.video import frame_pyramid_sizes


def moving_shapes(frames: int = 12, size: tuple[int, int] = (64, 64), *, seed: int = 0, index: int = 0) -> np.ndarray:
    """A video uint8 [T, H, W, 3] of a textured shape that moves."""
    return render_clip(seed, index, frames, size)[0]


def write_video(
    path: Path, video_THWC: np.ndarray, *, fps: int = 25, codec: str = "libx264", pixels: str = "yuv420p"
) -> Path:
    """Encode a video with PyAV; the container follows the suffix of `path`."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = video_THWC.shape[1:3]
        stream.pix_fmt = pixels
        for frame_HWC in video_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


def make_store(path: Path, *, num_clips: int = 6, frames: int = 12, size: tuple[int, int] = (32, 32)) -> VideoStore:
    """A raw store of synthetic clips with every frame size down to the smallest."""
    scan = scan_source(SourceOptions(kind="synthetic", num_clips=num_clips, num_frames=frames))
    prepare_store(scan, path, Recipe(frame_pyramid_sizes(size)), PrepareOptions(workers=1))
    return VideoStore.open(path)
