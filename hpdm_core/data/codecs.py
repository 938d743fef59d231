"""How frames lie in a shard file: raw bytes or one JPEG per frame. One file per shard and frame size.

raw: a plain `.npy` of uint8 `[frames, H, W, 3]`; a patch is read by touching its bytes alone.
jpeg: JPEG images (4:4:4) one after another, and an `.offsets.npy` of int64 `[frames + 1]`, for about a fifth of the
space. Restart markers cut each image into segments, and a patch costs the decoding of those it touches (jpeg.py).

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from hpdm_core.data.jpeg import Box, DamagedFrame, encode_jpeg, read_box
from hpdm_core.errors import DataError

Codec = Literal["raw", "jpeg"]
Size = tuple[int, int]

RAW_HEADER_BYTES = 128


def size_name(size: Size) -> str:
    """`128x160` for height 128 and width 160."""
    return f"{size[0]}x{size[1]}"


def data_file(shard: str, size: Size, codec: Codec) -> str:
    """Name of the file with the frames of one size of one shard."""
    return f"{shard}-{size_name(size)}.{'npy' if codec == 'raw' else 'jpegs'}"


def offsets_file(shard: str, size: Size) -> str:
    """Name of the file with the positions of JPEG frames."""
    return f"{shard}-{size_name(size)}.offsets.npy"


def remedy_for(folder: Path, shard: str) -> str:
    """What helps against damage inside the files of a shard: `prepare-data` trusts those of the right length."""
    return f"delete {folder / shard}-* and run the hpdm prepare-data command that made the store again"


def file_header(num_frames: int, size: Size, codec: Codec) -> bytes:
    """The first bytes of a data file: `.npy` version 1.0, padded to a fixed length, for raw; none for jpeg."""
    if codec == "jpeg":
        return b""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({num_frames}, {size[0]}, {size[1]}, 3), }}"
    body = text.ljust(RAW_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("ascii")


def encode_frames(frames_THWC: np.ndarray, codec: Codec) -> list[bytes]:
    """The stored form of each frame."""
    if codec == "raw":
        return [frame.tobytes() for frame in frames_THWC]
    return [encode_jpeg(frame) for frame in frames_THWC]


class FrameReader(Protocol):
    """Reads boxes of pixels from the frames of one shard at one size."""

    def read(self, frames: range, top: int, left: int, height: int, width: int) -> np.ndarray:
        """uint8 `[T, height, width, 3]`, a fresh array."""
        ...

    def stored_bytes(self, first: int, count: int) -> bytes:
        """The bytes of `count` frames as they lie in the file."""
        ...


class RawReader:
    """Memory-mapped uint8 frames."""

    def __init__(self, folder: Path, shard: str, size: Size) -> None:
        self._frames_THWC = np.load(folder / data_file(shard, size, "raw"), mmap_mode="r").view(np.ndarray)

    def read(self, frames: range, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `FrameReader`."""
        chosen = self._frames_THWC[frames.start : frames.stop : frames.step]
        return chosen[:, top : top + height, left : left + width].copy()

    def stored_bytes(self, first: int, count: int) -> bytes:
        """See `FrameReader`."""
        return self._frames_THWC[first : first + count].tobytes()


class JpegReader:
    """JPEG frames in one memory-mapped blob."""

    def __init__(self, folder: Path, shard: str, size: Size) -> None:
        self._path = folder / data_file(shard, size, "jpeg")
        self._remedy = remedy_for(folder, shard)
        self._blob = np.memmap(self._path, dtype=np.uint8, mode="r").view(np.ndarray)
        self._offsets: Sequence[int] = np.load(folder / offsets_file(shard, size)).tolist()

    def read(self, frames: range, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `FrameReader`. Raises DataError for a damaged frame."""
        blobs = [self._blob[self._offsets[frame] : self._offsets[frame + 1]] for frame in frames]
        try:
            return read_box(blobs, Box(top, left, height, width))
        except DamagedFrame as error:
            message = f"{self._path}: frame {frames[error.index]} is damaged: {error}"
            raise DataError(message, hint=self._remedy) from error

    def stored_bytes(self, first: int, count: int) -> bytes:
        """See `FrameReader`."""
        return self._blob[self._offsets[first] : self._offsets[first + count]].tobytes()


def open_frames(folder: Path, shard: str, size: Size, codec: Codec) -> FrameReader:
    """The reader for one data file."""
    return RawReader(folder, shard, size) if codec == "raw" else JpegReader(folder, shard, size)
