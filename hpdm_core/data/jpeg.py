"""Reading a box of pixels from many JPEG frames without decoding the rest of them.

The encoder puts a restart marker after every few blocks of 8x8 pixels, never across the end of a row of blocks. What
lies between two markers, a segment, can be decoded without what came before (ITU-T T.81, E.1.4). To read a box, the
segments that it touches are taken from every frame and strung together, frame under frame, to one narrow and tall
JPEG image, which is decoded in one go. 4:4:4 and baseline coding make blocks independent of their neighbours, so the
pixels are exactly those of decoding the whole frames.

Frames are ordinary JPEG files; those without markers, of older stores, are decoded whole.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, UnidentifiedImageError

QUALITY = 95
BLOCK = 8
SEGMENT_BLOCKS = (
    4  # 32 pixels: a patch of 64 touches 3 segments in each row; at 256x256 the markers cost 4 % of the bytes
)
MAX_HEIGHT, MAX_PIXELS = 32_768, 2**25  # of an image strung together; the format ends at a height of 65,535

_SOF0, _DRI, _SOS, _RST0, _EOI = 0xC0, 0xDD, 0xDA, 0xD0, 0xD9


class DamagedFrame(Exception):
    """Frame `index` of those given cannot be decoded."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True, slots=True)
class Box:
    """A box of pixels, the same in every frame."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a frame is cut up: its header as bytes, and its size in blocks and in segments of a row.

    `size_at` is where the header says height and width.
    """

    header: bytes
    size_at: int
    height: int
    width: int
    segment_blocks: int

    @property
    def rows(self) -> int:
        """Rows of blocks."""
        return -(-self.height // BLOCK)

    @property
    def columns(self) -> int:
        """Segments in a row of blocks."""
        return -(-self.width // BLOCK) // self.segment_blocks

    def resized(self, height: int, width: int) -> bytes:
        """The header of an image of another size."""
        size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        return self.header[: self.size_at] + size + self.header[self.size_at + 4 :]


def encode_jpeg(frame_HWC: np.ndarray) -> bytes:
    """One frame as a JPEG file with restart markers."""
    blocks = -(-frame_HWC.shape[1] // BLOCK)
    every = next((n for n in range(SEGMENT_BLOCKS, blocks) if blocks % n == 0), blocks)
    buffer = io.BytesIO()
    image = Image.fromarray(frame_HWC)
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0, restart_marker_blocks=every)
    return buffer.getvalue()


def read_box(frames: Sequence[np.ndarray], box: Box) -> np.ndarray:
    """The box from each frame, given as uint8 `[bytes]`: uint8 `[T, height, width, 3]`. Raises DamagedFrame."""
    video = np.empty((len(frames), box.height, box.width, 3), dtype=np.uint8)
    layout = _layout(frames[0]) if frames else None
    if layout is None or not _decode_segments(frames, box, layout, video):
        for index, (row, frame) in enumerate(zip(video, frames, strict=True)):
            pixels = _decoded(frame.tobytes(), index)
            row[:] = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return video


def _decode_segments(frames: Sequence[np.ndarray], box: Box, layout: Layout, video_THWC: np.ndarray) -> bool:
    """Fill the video from the segments that the box touches; False where a frame is not laid out like the first."""
    side = layout.segment_blocks * BLOCK
    rows = range(box.top // BLOCK, -(-(box.top + box.height) // BLOCK))
    columns = range(box.left // side, -(-(box.left + box.width) // side))
    height, width = len(rows) * BLOCK, len(columns) * side
    top, left = box.top - rows.start * BLOCK, box.left - columns.start * side
    at_once = max(min(MAX_HEIGHT, MAX_PIXELS // width) // height, 1)
    for first in range(0, len(frames), at_once):
        some = frames[first : first + at_once]
        scan = _strung_together(some, rows, columns, layout)
        if scan is None:
            return False
        try:
            pixels_HWC = _decoded(layout.resized(len(some) * height, width) + scan, first)
        except DamagedFrame:  # decoding them one by one tells which
            return False
        stacked_THWC = pixels_HWC.reshape(len(some), height, width, 3)
        video_THWC[first : first + at_once] = stacked_THWC[:, top : top + box.height, left : left + box.width]
    return True


def _strung_together(frames: Sequence[np.ndarray], rows: range, columns: range, layout: Layout) -> bytes | None:
    """The coded data of one image made of the frames' segments; None where a frame is not laid out that way."""
    begin, per_row = len(layout.header), layout.columns
    if any(frame[:begin].tobytes() != layout.header for frame in frames):
        return None
    coded = np.concatenate([frame[begin:] for frame in frames])
    cuts = [0, *(_marks(coded) + 2).tolist()]  # a segment ends with its marker
    per_frame = layout.rows * per_row
    if len(cuts) != len(frames) * per_frame + 1:
        return None
    lines = [frame * per_frame + row * per_row for frame in range(len(frames)) for row in rows]
    scan = np.concatenate([coded[cuts[line + columns.start] : cuts[line + columns.stop]] for line in lines])
    # Now the markers are counted anew, modulo 8, and the last one ends the image.
    marks = _marks(scan) + 1
    scan[marks] = _RST0 + np.arange(len(marks)) % 8
    scan[marks[-1]] = _EOI
    return scan.tobytes()


def _marks(scan: np.ndarray) -> np.ndarray:
    """Positions of the restart markers RST0 to RST7 and of EOI; in coded data 0xFF is followed by 0 instead."""
    found = np.flatnonzero(scan[:-1] == 0xFF)
    kind = scan[found + 1]
    return found[((kind & 0xF8) == _RST0) | (kind == _EOI)]


def _layout(frame: np.ndarray) -> Layout | None:
    """The layout of a frame; None for one that is to be decoded whole."""
    return _parsed(frame[:2048].tobytes())


@lru_cache(maxsize=64)
def _parsed(head: bytes) -> Layout | None:
    """Walk over the marker segments up to the coded data (ITU-T T.81, B.2)."""
    at, size_at, every = 2, 0, 0
    while head[at : at + 1] == b"\xff" and at + 4 <= len(head):
        kind, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if kind == _SOF0:
            size_at = at + 5
        elif kind == _DRI:
            every = int.from_bytes(head[at + 4 : at + 6], "big")
        at += 2 + length
        if kind == _SOS:
            break
    else:
        return None
    if not size_at or not every or at > len(head):
        return None
    height, width = (int.from_bytes(head[i : i + 2], "big") for i in (size_at, size_at + 2))
    if -(-width // BLOCK) % every:
        return None
    return Layout(head[:at], size_at, height, width, every)


def _decoded(blob: bytes, index: int) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(blob)))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DamagedFrame(str(error), index) from error
