"""From a video file to RGB frames, once and in order.

Random access returns wrong frames in open-GOP streams, so there is none here. PyAV reads the header and the
packet times first (`probe`); decord then decodes; whatever decord cannot do, PyAV tries. Both give the
same pixels in sequential decoding. Call these functions in a child process (`isolate`): a decoder may hang. Paths are
made absolute, because FFmpeg takes `a:b.mp4` for a protocol.

What can be detected: a file that decodes more than a tenth (and more than two frames) short of the
number of frames that its header promises is refused as `truncated`. A container whose header was never written
(a cut transport stream, say) promises nothing, and what remains of it is taken for the whole clip. A header
that promises too much looks the same as a file that lost its end.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hpdm_core.data.backends import (
    BACKENDS,
    BackendFailed,
    Chunks,
    backend_version,
    load_backend,
    open_container,
    picture_stream,
)
from hpdm_core.errors import CorruptVideo

R = TypeVar("R")

CHUNK_FRAMES = 16
_OS_REASONS = {
    errno.ENOENT: "missing",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ELOOP: "symlink-loop",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What a container says of its first video stream, and what its packet times show.

    `expected_frames` is None where the header promises no number. `fps` is an average where `vfr` (variable
    frame rate).
    """

    codec: str
    fps: float | None
    vfr: bool
    expected_frames: int | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """How a file was decoded: the backend with its version, and the frames it gave."""

    probe: Probe
    backend: str
    num_frames: int


def decode_video(
    path: Path, *, backends: Sequence[str] = BACKENDS, max_frames: int | None = None
) -> tuple[np.ndarray, Decoded]:
    """The whole of one file as uint8 `[T, H, W, 3]` and how it was decoded. Raises CorruptVideo."""
    return decode_into(path, lambda chunks: np.concatenate(list(chunks)), backends=backends, max_frames=max_frames)


def decode_into(
    path: Path,
    consume: Callable[[Chunks], R],
    *,
    backends: Sequence[str] = BACKENDS,
    max_frames: int | None = None,
) -> tuple[R, Decoded]:
    """Pass the frames of `path`, in chunks of uint8 `[T, H, W, 3]`, to `consume` and return its result.

    `consume` starts afresh for each backend that is tried. Raises CorruptVideo with the last backend's reason.
    """
    check_readable(path)
    found = probe(path)
    failure = BackendFailed("decode-error", "no decoder was tried")
    for name in backends:
        count = _Count(found.expected_frames, max_frames)
        try:
            result = consume(count.through(load_backend(name)(path, CHUNK_FRAMES)))
        except BackendFailed as error:
            if count.frames and error.reason == "decode-error" and count.is_short():
                error.reason = "truncated"
            failure = error
            continue
        except MemoryError:
            raise CorruptVideo(f"{path}: not enough memory for its frames", reason="out-of-memory") from None
        return result, Decoded(found, backend_version(name), count.frames)
    raise CorruptVideo(f"{path}: {failure}", reason=failure.reason) from failure


class _Count:
    """Counts frames on their way, stops at a limit, and complains at the end if there were too few."""

    def __init__(self, expected: int | None, limit: int | None) -> None:
        self.frames = 0
        self._expected = expected
        self._limit = limit

    def through(self, chunks: Chunks) -> Chunks:
        for chunk in chunks:
            kept = chunk if self._limit is None else chunk[: self._limit - self.frames]
            self.frames += len(kept)
            yield kept
            if self._limit is not None and self.frames >= self._limit:
                return
        if self.frames == 0:
            raise BackendFailed("no-frames", "the decoder gave no frame")
        if self.is_short():
            raise BackendFailed("truncated", f"{self.frames} frames decoded, the header promises {self._expected}")

    def is_short(self) -> bool:
        """Whether frames are missing by a clear margin."""
        return self._expected is not None and self._expected - self.frames > max(2, self._expected // 10)


def check_readable(path: Path) -> None:
    """Raise CorruptVideo for a file that is absent, empty, unreadable or a link to itself."""
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise CorruptVideo(f"{path} is empty", reason="empty-file")
    except OSError as error:
        reason = _OS_REASONS.get(error.errno or 0, "unreadable")
        raise CorruptVideo(f"{path}: {error.strerror}", reason=reason) from error


def probe(path: Path) -> Probe:
    """Read the header and the packet times of the first video stream. Raises CorruptVideo."""
    from av.error import FFmpegError

    try:
        container = open_container(path)
    except (FFmpegError, ValueError) as error:
        raise CorruptVideo(f"{path} is not a video: {error}", reason="not-a-video") from error
    with container:
        stream = picture_stream(container)
        if stream is None:
            raise CorruptVideo(f"{path} has no video stream", reason="no-video-stream")
        seconds = _packet_seconds(container, stream)
        fps, vfr = frame_rate(seconds, float(stream.average_rate) if stream.average_rate else None)
        return Probe(
            codec=stream.codec_context.name,
            fps=fps,
            vfr=vfr,
            expected_frames=_expected_frames(container, stream, fps, vfr),
        )


def _packet_seconds(container: Any, stream: Any) -> list[float]:
    """Presentation times of the packets that can be read; a broken tail ends the list."""
    from av.error import FFmpegError

    seconds = []
    try:
        for packet in container.demux(stream):
            if packet.pts is not None and packet.time_base is not None:
                seconds.append(float(packet.pts * packet.time_base))
    except FFmpegError:
        return sorted(seconds)
    return sorted(seconds)


def frame_rate(seconds: Sequence[float], nominal: float | None) -> tuple[float | None, bool]:
    """Average frames per second of presentation times, and whether the rate varies.

    It varies when more than three intervals, and more than 2 % of them, differ from the median by more than a quarter.
    """
    if len(seconds) < 3:
        return nominal, False
    gaps = np.diff(np.asarray(seconds))
    median = float(np.median(gaps))
    if median <= 0:
        return nominal, False
    vfr = int(np.sum(np.abs(gaps - median) > 0.25 * median)) > max(3, len(gaps) // 50)
    average = len(gaps) / (seconds[-1] - seconds[0])
    return (average if vfr or nominal is None else nominal), vfr


def _expected_frames(container: Any, stream: Any, fps: float | None, vfr: bool) -> int | None:
    """The number of frames that the header promises, directly or as duration times rate.

    A container's own duration counts only where no other stream can have set it.
    """
    if stream.frames:
        return int(stream.frames)
    if not fps or vfr:
        return None
    if stream.duration and stream.time_base:
        return round(float(stream.duration * stream.time_base) * fps)
    if container.duration and len(container.streams) == 1:
        return round(container.duration / 1e6 * fps)
    return None
