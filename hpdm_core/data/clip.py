"""Preparing one clip: decode, resize, build the spatial pyramid, append to the open shard. Runs in a child process."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import add
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from hpdm_core.data.backends import BACKENDS, Chunks
from hpdm_core.data.codecs import Codec, Size, encode_frames
from hpdm_core.data.decode import CHUNK_FRAMES, check_readable, decode_into
from hpdm_core.data.disk import writing_to
from hpdm_core.data.sources.base import SourceClip
from hpdm_core.data.synthetic import render_clip
from hpdm_core.errors import CorruptVideo
from hpdm_core.video import Fit, halve_frames, resize_frames


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the pixels of a store. `sizes` are (H, W), finest first, each half the one before."""

    sizes: tuple[Size, ...]
    codec: Codec = "raw"
    fit: Fit = "crop"
    max_frames: int | None = None
    backends: tuple[str, ...] = BACKENDS


@dataclass(frozen=True)
class ClipJob:
    """One clip and where to append it: a file and a byte offset per size of the recipe."""

    clip: SourceClip
    recipe: Recipe
    files: tuple[Path, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class ClipResult:
    """What was written. `frame_bytes` are the stored lengths of the frames, `crc32` of all their bytes, per size."""

    num_frames: int
    fps: float | None
    width: int
    height: int
    captions: tuple[str, ...]
    sha256: str
    decoder: str
    notes: tuple[str, ...]
    frame_bytes: tuple[tuple[int, ...], ...]
    crc32: tuple[int, ...]


def prepare_clip(job: ClipJob) -> ClipResult:
    """Append one clip to its shard files.

    Raises CorruptVideo, leaving bytes past the offsets undefined; DataError where the shard cannot be written.
    """
    clip = job.clip
    if clip.synthetic is not None:
        return _prepare_synthetic(job)
    if clip.is_images:
        return _prepare_images(job)
    return _prepare_video(job)


def prepare_clips(job: ClipJob, *more: SourceClip) -> list[ClipResult]:
    """Append the clip of `job` and then `more`, each behind the one before. Raises what `prepare_clip` does."""
    results = [prepare_clip(job)]
    for clip in more:
        lengths = map(sum, results[-1].frame_bytes)
        job = replace(job, clip=clip, offsets=tuple(map(add, job.offsets, lengths)))
        results.append(prepare_clip(job))
    return results


def _prepare_video(job: ClipJob) -> ClipResult:
    path = job.clip.paths[0]
    sink, decoded = decode_into(
        path, lambda chunks: _store(job, chunks), backends=job.recipe.backends, max_frames=job.recipe.max_frames
    )
    found = decoded.probe
    missing = (found.expected_frames or 0) - decoded.num_frames
    notes = ["variable frame rate"] if found.vfr else []
    if missing > 0 and job.recipe.max_frames is None:
        notes.append(f"{missing} frames fewer than the header says")
    return sink.result(
        fps=found.fps,
        captions=job.clip.captions,
        sha256=_file_hash(job.clip.paths),
        decoder=decoded.backend,
        notes=notes,
    )


def _prepare_images(job: ClipJob) -> ClipResult:
    paths = job.clip.paths[: job.recipe.max_frames]
    sink = _store(job, (np.stack([frame]) for frame in map(_read_image, paths)))
    return sink.result(
        fps=job.clip.fps,
        captions=job.clip.captions,
        sha256=_file_hash(paths),
        decoder="pillow",
        notes=[],
    )


def _prepare_synthetic(job: ClipJob) -> ClipResult:
    spec = job.clip.synthetic
    assert spec is not None
    size = job.recipe.sizes[0]
    video, info = render_clip(spec.seed, spec.index, spec.frames, size, spec.style, spec.frame_step)
    video = video[: job.recipe.max_frames]
    sink = _store(job, iter([video]))
    return sink.result(
        fps=info.fps,
        captions=info.captions,
        sha256=hashlib.sha256(np.ascontiguousarray(video).data).hexdigest(),
        decoder="synthetic",
        notes=[],
    )


def _opened(path: Path) -> Image.Image:
    check_readable(path)
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise CorruptVideo(f"{path} is not an image: {error}", reason="not-an-image") from error


def _read_image(path: Path) -> np.ndarray:
    with _opened(path) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise CorruptVideo(f"{path}: {error}", reason="truncated") from error


def _file_hash(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _store(job: ClipJob, chunks: Chunks) -> _Sink:
    """Write the chunks at every size, from the job's offsets on."""
    sink = _Sink(job)
    with writing_to(job.files[0].parent), ExitStack() as stack:
        files = [stack.enter_context(path.open("r+b")) for path in job.files]
        for file, offset in zip(files, job.offsets, strict=True):
            file.truncate(offset)
            file.seek(offset)
        for chunk in _from_source(chunks):
            for part in _small_parts(chunk):
                sink.write(files, part)
    return sink


def _from_source(chunks: Chunks) -> Chunks:
    """The chunks; a source that cannot be read must not look like a store that cannot be written."""
    try:
        yield from chunks
    except OSError as error:
        raise CorruptVideo(str(error), reason="unreadable") from error


def _small_parts(chunk: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(chunk), CHUNK_FRAMES):
        yield chunk[first : first + CHUNK_FRAMES]


class _Sink:
    """Appends frames to the open files and keeps the account of them."""

    def __init__(self, job: ClipJob) -> None:
        self._recipe = job.recipe
        self._frame_bytes: list[list[int]] = [[] for _ in job.recipe.sizes]
        self._crc32 = [0] * len(job.recipe.sizes)
        self._source: Size | None = None

    def write(self, files: Sequence[BinaryIO], frames_THWC: np.ndarray) -> None:
        """Resize, halve down the pyramid, encode, append."""
        height, width = frames_THWC.shape[1:3]
        self._source = self._source or (height, width)
        level = resize_frames(frames_THWC, self._recipe.sizes[0], fit=self._recipe.fit)
        for i, file in enumerate(files):
            level = level if i == 0 else halve_frames(level)
            for blob in encode_frames(level, self._recipe.codec):
                file.write(blob)
                self._frame_bytes[i].append(len(blob))
                self._crc32[i] = zlib.crc32(blob, self._crc32[i])

    def result(
        self, fps: float | None, captions: tuple[str, ...], sha256: str, decoder: str, notes: list[str]
    ) -> ClipResult:
        """The account of the clip just written."""
        height, width = self._source or (0, 0)
        finest = self._recipe.sizes[0]
        if height < finest[0] or width < finest[1]:
            notes = [f"upscaled from {height}x{width}", *notes]
        return ClipResult(
            num_frames=len(self._frame_bytes[0]),
            fps=None if fps is None else round(fps, 4),
            width=width,
            height=height,
            captions=captions,
            sha256=sha256,
            decoder=decoder,
            notes=tuple(notes),
            frame_bytes=tuple(tuple(lengths) for lengths in self._frame_bytes),
            crc32=tuple(self._crc32),
        )
