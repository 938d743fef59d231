"""The decoders: each yields the frames of a whole file in stored order, upright, as RGB.

decord is fast on small videos and knows codecs up to 2020; PyAV knows the rest. Both give the same pixels in
sequential decoding. decord turns frames upright by itself, PyAV leaves that to us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.errors import ConfigError, EnvironmentProblem

Chunks = Iterator[np.ndarray]
Backend = Callable[[Path, int], Chunks]

BACKENDS = ("decord", "av")
# decord reads these when it is first imported; its default of 10240 retries looks like a hang.
CHILD_ENVIRONMENT = {
    "DECORD_EOF_RETRY_MAX": "256",
    "DECORD_REWIND_RETRY_MAX": "4",
    "OMP_NUM_THREADS": "1",
}


class BackendFailed(Exception):
    """One backend could not decode the file; `reason` is the word for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def load_backend(name: str) -> Backend:
    """A backend by name, or your own as `module:function` with the signature of `Backend`."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module, _, function = name.partition(":")
    if not function:
        raise ConfigError(
            f"unknown decoder {name!r}", hint=f"choose from {', '.join(BACKENDS)}, or give module:function"
        )
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"decoder {name!r} cannot be loaded: {error}", hint="give module:function") from error


def available_backends(names: Sequence[str] = BACKENDS) -> tuple[str, ...]:
    """Those of `names` that this machine has; EnvironmentProblem where it has none, ConfigError for unknown names."""
    unknown = [name for name in names if name not in _BUILT_IN and ":" not in name]
    if unknown:
        load_backend(unknown[0])
    found = tuple(name for name in names if _is_installed(name.partition(":")[0]))
    if not found:
        raise EnvironmentProblem(f"no video decoder among {', '.join(names)}", hint="pip install av")
    return found


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def backend_version(name: str) -> str:
    """`decord 0.6.0`, as the index records it; a backend of your own is recorded by name."""
    return f"{name} {version(name)}" if name in _BUILT_IN else name


def _decord_chunks(path: Path, chunk: int) -> Chunks:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise BackendFailed("decode-error", f"decord cannot be loaded: {error}") from error
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        yield from _in_chunks((_rgb(reader.next().asnumpy()) for _ in range(len(reader))), chunk)
    except (RuntimeError, UnicodeError, decord.DECORDError) as error:
        first_line = (str(error).strip() or "unknown error").splitlines()[0]
        raise BackendFailed("decode-error", f"decord: {first_line}") from error


def _rgb(frame: np.ndarray) -> np.ndarray:
    """Refuse decord's misread rows: at some small widths (48, for one) it takes padding for a fourth channel."""
    if frame.shape[-1] != 3:
        raise BackendFailed("decode-error", f"decord gave {frame.shape[-1]} channels")
    return frame


def open_container(path: Path) -> Any:
    """The file opened by PyAV, whatever encoding its text tags are in.

    PyAV 19 tolerates foreign tags by itself and refuses the option that older versions need.
    """
    import av

    tolerant: dict[str, Any] = {"metadata_errors": "replace"} if int(version("av").split(".")[0]) < 19 else {}
    return av.open(str(path.absolute()), **tolerant)


def picture_stream(container: Any) -> Any | None:
    """The first video stream of an open container that is not cover art; None without one."""
    from av.stream import Disposition

    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _av_chunks(path: Path, chunk: int) -> Chunks:
    from av.error import FFmpegError

    try:
        with open_container(path) as container:
            stream = picture_stream(container)
            if stream is None:
                raise BackendFailed("no-video-stream", "av: no video stream")
            stream.codec_context.thread_count = 1
            upright = (
                np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4)
                for frame in container.decode(stream)
            )
            yield from _in_chunks(upright, chunk)
    except (FFmpegError, ValueError) as error:
        raise BackendFailed("decode-error", f"av: {error}") from error


def _in_chunks(frames: Iterator[np.ndarray], chunk: int) -> Chunks:
    """Stack frames of one size, `chunk` at a time. What was decoded before an error is handed on before it."""
    pending: list[np.ndarray] = []
    try:
        for frame in frames:
            if pending and (len(pending) == chunk or pending[0].shape != frame.shape):
                yield np.stack(pending)
                pending = []
            pending.append(frame)
    except Exception:
        if pending:
            yield np.stack(pending)
        raise
    if pending:
        yield np.stack(pending)


_BUILT_IN: dict[str, Backend] = {"decord": _decord_chunks, "av": _av_chunks}
