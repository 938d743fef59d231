"""Builds video files, good and bad, for tests; nothing binary is committed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from hpdm_core.data.synthetic import render_clip

SIZE = (64, 80)
NUM_FRAMES = 40


def sample_video(index: int = 0, frames: int = NUM_FRAMES, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A procedural clip: uint8 `[T, H, W, 3]`."""
    return render_clip(7, index, frames, size)[0]


def write_video(
    path: Path,
    video: np.ndarray,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Encode with PyAV at 25 frames/s; `times` are the frames' positions in 25ths of a second."""
    import av

    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], pixel_format
        stream.codec_context.time_base = Fraction(1, 25)
        for i, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (i if times is None else times[i]), Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_lossless(path: Path, video: np.ndarray) -> Path:
    """An AVI (FFV1) whose decoding is exact."""
    return write_video(path, video, codec="ffv1", pixel_format="bgr0")


def write_audio_only(path: Path) -> Path:
    """A container with sound and no picture."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def cut(source: Path, target: Path, start: float, stop: float) -> Path:
    """The bytes of `source` between two fractions of its length."""
    data = source.read_bytes()
    target.write_bytes(data[int(start * len(data)) : int(stop * len(data))])
    return target


def claim_frames(source: Path, target: Path, num_frames: int) -> Path:
    """A copy of an AVI whose headers say that it has `num_frames` frames."""
    data = bytearray(source.read_bytes())
    for tag, offset in ((b"avih", 16), (b"strh", 32)):
        at = data.index(tag) + 8 + offset
        data[at : at + 4] = num_frames.to_bytes(4, "little")
    target.write_bytes(data)
    return target


def rotate_header(source: Path, target: Path, quarter_turns: int) -> Path:
    """A copy of an MP4 whose header asks players to turn the picture clockwise by quarter turns."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns % 4]
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    target.write_bytes(data)
    return target


def hanging_backend(path: Path, chunk: int) -> object:
    """A decoder that never returns for files named `*hang*`, and ends the process for `*crash*`; else PyAV."""
    import os
    import time

    from hpdm_core.data.backends import load_backend

    while "hang" in path.name:
        time.sleep(0.05)
    if "crash" in path.name:
        os._exit(11)
    return load_backend("av")(path, chunk)


def hanging_decode(path: Path) -> object:
    """`decode_video` that never returns for files named `*hang*`, and ends the process for `*crash*`."""
    from hpdm_core.data.decode import decode_video

    return decode_video(path, backends=("tests.support.videos:hanging_backend",))
