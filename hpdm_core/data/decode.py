"""From a video file to RGB frames, once and in order.

Random access returns wrong frames in open-GOP streams, so there is none here. PyAV reads the header and the
packet times first (`probe`); decord then decodes; whatever decord cannot do, PyAV tries. Both give the
same pixels in sequential decoding. Call these functions in a child process (`isolate`): a decoder may hang.

What can be detected: a file that decodes more than a tenth (and more than two frames) short of the
number of frames that its header promises is refused as `truncated`. A container whose header was never written
(a cut transport stream, say) promises nothing, and what remains of it is taken for the whole clip. A header
that promises too much looks the same as a file that lost its end.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hpdm_core.errors import ConfigError, CorruptVideo, EnvironmentProblem

R = TypeVar("R")
Chunks = Iterator[np.ndarray]
Backend = Callable[[Path, int], Chunks]

BACKENDS = ("decord", "av")
CHUNK_FRAMES = 16
# decord reads these when it is first imported; its default of 10240 retries looks like a hang.
CHILD_ENVIRONMENT = {
    "DECORD_EOF_RETRY_MAX": "256",
    "DECORD_REWIND_RETRY_MAX": "4",
    "OMP_NUM_THREADS": "1",
}

_OS_REASONS = {
    errno.ENOENT: "missing",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ELOOP: "symlink-loop",
}


class BackendFailed(Exception):
    """One backend could not decode the file; `reason` is the word for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Probe:
    """What a container says of its first video stream, and what its packet times show.

    `expected_frames` is None where the header promises no number. `fps` is an average where `vfr` (variable
    frame rate). `rotation` is in degrees and is not applied to the frames.
    """

    width: int
    height: int
    codec: str
    fps: float | None
    vfr: bool
    expected_frames: int | None
    rotation: int


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
        count = _Count(max_frames)
        try:
            result = consume(count.through(load_backend(name)(path, CHUNK_FRAMES)))
            count.check(found.expected_frames)
        except BackendFailed as error:
            if count.frames and error.reason == "decode-error" and count.is_short(found.expected_frames):
                error.reason = "truncated"
            failure = error
            continue
        except MemoryError:
            raise CorruptVideo(f"{path}: not enough memory for its frames", reason="out-of-memory") from None
        return result, Decoded(found, backend_version(name), count.frames)
    raise CorruptVideo(f"{path}: {failure}", reason=failure.reason) from failure


class _Count:
    """Counts frames on their way and stops at a limit."""

    def __init__(self, limit: int | None) -> None:
        self.frames = 0
        self._limit = limit

    def through(self, chunks: Chunks) -> Chunks:
        for chunk in chunks:
            room = len(chunk) if self._limit is None else self._limit - self.frames
            kept = chunk[:room]
            self.frames += len(kept)
            yield kept
            if self._limit is not None and self.frames >= self._limit:
                return

    def is_short(self, expected: int | None) -> bool:
        if expected is None:
            return False
        expected = expected if self._limit is None else min(expected, self._limit)
        return expected - self.frames > max(2, expected // 10)

    def check(self, expected: int | None) -> None:
        if self.frames == 0:
            raise BackendFailed("no-frames", "the decoder gave no frame")
        if self.is_short(expected):
            raise BackendFailed("truncated", f"{self.frames} frames decoded, the header promises {expected}")


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
    import av
    from av.error import FFmpegError

    try:
        container = av.open(str(path), metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise CorruptVideo(f"{path} is not a video: {error}", reason="not-a-video") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & _attached_picture()]
        if not streams:
            raise CorruptVideo(f"{path} has no video stream", reason="no-video-stream")
        stream = streams[0]
        context = stream.codec_context
        seconds = _packet_seconds(container, stream)
        fps, vfr = frame_rate(seconds, float(stream.average_rate) if stream.average_rate else None)
        return Probe(
            width=context.width,
            height=context.height,
            codec=context.name,
            fps=fps,
            vfr=vfr,
            expected_frames=_expected_frames(stream, fps, vfr),
            rotation=0,
        )


def _attached_picture() -> Any:
    from av.stream import Disposition

    return Disposition.attached_pic


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

    It varies when more than 2 % of the intervals differ from the median by more than a quarter.
    """
    if len(seconds) < 3:
        return nominal, False
    gaps = np.diff(np.asarray(seconds))
    median = float(np.median(gaps))
    if median <= 0:
        return nominal, False
    vfr = bool(np.mean(np.abs(gaps - median) > 0.25 * median) > 0.02)
    average = len(gaps) / (seconds[-1] - seconds[0])
    return (average if vfr or nominal is None else nominal), vfr


def _expected_frames(stream: Any, fps: float | None, vfr: bool) -> int | None:
    """The number of frames that the header promises, directly or as duration times rate."""
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base and fps and not vfr:
        return round(float(stream.duration * stream.time_base) * fps)
    return None


def load_backend(name: str) -> Backend:
    """A backend by name, or your own as `module:function` with the signature of `Backend`."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module, _, function = name.partition(":")
    if not function:
        raise ConfigError(
            f"unknown decoder {name!r}", hint=f"choose from {', '.join(BACKENDS)}, or give module:function"
        )
    return getattr(import_module(module), function)


def available_backends(names: Sequence[str] = BACKENDS) -> tuple[str, ...]:
    """Those of `names` that can be imported on this machine; EnvironmentProblem where none can."""
    found = []
    for name in names:
        try:
            import_module(name.partition(":")[0])
        except (ImportError, OSError):
            continue
        found.append(name)
    if not found:
        raise EnvironmentProblem(f"no video decoder among {', '.join(names)}", hint="pip install av")
    return tuple(found)


def backend_version(name: str) -> str:
    """`decord 0.6.0`, as the index records it; a backend of your own is recorded by name."""
    return f"{name} {version(name)}" if name in _BUILT_IN else name


def _decord_chunks(path: Path, chunk: int) -> Chunks:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        for first in range(0, len(reader), chunk):
            frames = []
            for _ in range(first, min(first + chunk, len(reader))):
                frames.append(reader.next().asnumpy())
            yield np.stack(frames)
    except StopIteration:
        raise BackendFailed("truncated", "decord: the stream ended early") from None
    except (RuntimeError, decord.DECORDError) as error:
        first_line = (str(error).strip() or "unknown error").splitlines()[0]
        raise BackendFailed("decode-error", f"decord: {first_line}") from error


def _av_chunks(path: Path, chunk: int) -> Chunks:
    import av
    from av.error import FFmpegError

    frames: list[np.ndarray] = []
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                image = frame.to_ndarray(format="rgb24")
                if frames and (len(frames) == chunk or frames[0].shape != image.shape):
                    yield np.stack(frames)
                    frames = []
                frames.append(image)
    except (FFmpegError, ValueError) as error:
        raise BackendFailed("decode-error", f"av: {error}") from error
    if frames:
        yield np.stack(frames)


_BUILT_IN: dict[str, Backend] = {"decord": _decord_chunks, "av": _av_chunks}
