"""Videos out: previews for eyes (MP4, GIF, sheets) and lossless forms for metrics (PNG frames, NPZ).

Every file can carry its provenance (seed, model hash, settings) as JSON, which `read_metadata` gives back. Files
appear whole or not at all. MP4 is lossy: never measure on it.

Shapes: N videos, T frames, H W pixels; uint8, 0..255.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hpdm_core.data.backends import open_container
from hpdm_core.data.disk import appearing, appearing_folder, naming
from hpdm_core.errors import DataError

Metadata = Mapping[str, Any]

MP4_CRF = "16"
METADATA_KEY = "hpdm"
# What numpy, zipfile and Pillow raise for damaged files.
_DAMAGE = (OSError, EOFError, ValueError, SyntaxError, zipfile.BadZipFile, zlib.error)
_PAPER, _INK = (18, 18, 20), (225, 225, 225)


def write_mp4(path: Path, video_THWC: np.ndarray, fps: float, metadata: Metadata | None = None) -> None:
    """H.264 in yuv420p, which every player shows. Odd sides are made even by repeating the last row or column."""
    import av

    video = _even(_checked(video_THWC))
    with appearing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        container.metadata["comment"] = _dump(metadata)
        rate = Fraction(float(fps)).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": MP4_CRF})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))  # what the encoder holds back


def write_gif(path: Path, video_THWC: np.ndarray, fps: float, metadata: Metadata | None = None) -> None:
    """An endless GIF with one palette for all frames, so that still regions do not flicker."""
    video = _checked(video_THWC)
    sample = video[:: max(1, len(video) // 8)]
    palette = Image.fromarray(sample.reshape(-1, *video.shape[2:])).quantize(255)
    frames = [Image.fromarray(frame).quantize(palette=palette) for frame in video]
    with appearing(path) as partial:
        frames[0].save(
            partial,
            save_all=True,
            append_images=frames[1:],
            duration=max(20, round(1000 / fps)),
            loop=0,
            comment=_dump(metadata).encode(),
        )


def write_png(path: Path, image_HWC: np.ndarray, metadata: Metadata | None = None) -> None:
    """One PNG image, whatever its suffix says, with the metadata in a text chunk."""
    info = PngInfo()
    info.add_text(METADATA_KEY, _dump(metadata))
    with appearing(path) as partial:
        Image.fromarray(image_HWC).save(partial, format="PNG", pnginfo=info)


def write_png_frames(folder: Path, video_THWC: np.ndarray, metadata: Metadata | None = None) -> None:
    """A folder `00000.png, 00001.png, …`: lossless, and a source for `prepare-data --source frames`.

    Replaces a folder of that name which holds such frames only; DataError where something else is in the way.
    """
    video = _checked(video_THWC)
    if folder.exists() and not _holds_only_frames(folder):
        raise DataError(f"{folder} is in the way: it is no folder of frames", hint="move it, or choose another folder")
    with naming(folder), appearing_folder(folder) as partial:
        for number, frame in enumerate(video):
            write_png(partial / f"{number:05d}.png", frame, metadata)


def _holds_only_frames(folder: Path) -> bool:
    return folder.is_dir() and all(re.fullmatch(r"\d{5,}\.png", path.name) for path in folder.iterdir())


def write_png_strip(path: Path, video_THWC: np.ndarray, metadata: Metadata | None = None, *, columns: int = 8) -> None:
    """Up to `columns` frames, spread evenly over the video, side by side."""
    write_png(path, np.concatenate(list(spread_frames(_checked(video_THWC), columns)), axis=1), metadata)


def write_npz(path: Path, video_THWC: np.ndarray, fps: float, metadata: Metadata | None = None) -> None:
    """Lossless arrays: `video` uint8 `[T, H, W, 3]`, `fps`, and `metadata` as JSON text."""
    with appearing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, video=_checked(video_THWC), fps=fps, metadata=_dump(metadata))


def read_npz(path: Path) -> tuple[np.ndarray, float]:
    """The video and frame rate of a file from `write_npz`. Raises DataError."""
    try:
        with np.load(path) as file:
            return _checked(file["video"]), float(file["fps"])
    except (*_DAMAGE, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a video written by hpdm: {error}", hint="make it again with hpdm sample"
        ) from error


def write_contact_sheet(
    path: Path,
    videos: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    metadata: Metadata | None = None,
    *,
    columns: int = 8,
) -> None:
    """One row per video of up to `columns` evenly spread frames, its title above. Videos may differ in size."""
    rows = [_title_row(_strip(video, columns), titles[i] if i < len(titles) else "") for i, video in enumerate(videos)]
    width = max(row.shape[1] for row in rows)
    padded = [_pad(row, row.shape[0], width) for row in rows]
    write_png(path, np.concatenate(padded), metadata)


def tile_videos(videos_NTHWC: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Videos side by side in a grid, row by row: uint8 `[T, rows * (H + gap), columns * (W + gap), 3]`."""
    num, frames, height, width, _ = videos_NTHWC.shape
    rows = -(-num // columns)
    sheet = np.empty((frames, rows * (height + gap), columns * (width + gap), 3), dtype=np.uint8)
    sheet[:] = _PAPER
    for i, video in enumerate(videos_NTHWC):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = video
    return sheet


def spread_frames(video_THWC: np.ndarray, count: int) -> np.ndarray:
    """At most `count` frames, evenly spread from the first to the last."""
    chosen = np.linspace(0, len(video_THWC) - 1, min(count, len(video_THWC))).round().astype(int)
    return video_THWC[chosen]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of an MP4, GIF, PNG or NPZ that this module wrote; empty where there is none.

    Raises DataError for a file that is not what its suffix says.
    """
    from av.error import FFmpegError

    try:
        text = _metadata_text(path)
    except (*_DAMAGE, FFmpegError) as error:
        raise DataError(f"{path} is damaged: {error}", hint="make it again, or get another copy") from error
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:  # somebody else's comment
        return {}
    return found if isinstance(found, dict) else {}


def _metadata_text(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with np.load(path) as file:
            return str(file["metadata"]) if "metadata" in file else ""
    if suffix in (".png", ".gif"):
        with Image.open(path) as image:
            found = image.info.get(METADATA_KEY if suffix == ".png" else "comment", "")
        return found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    with open_container(path) as container:
        return container.metadata.get("comment", "")


def _dump(metadata: Metadata | None) -> str:
    return json.dumps(dict(metadata or {}), sort_keys=True)


def _checked(video_THWC: np.ndarray) -> np.ndarray:
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or not len(video_THWC):
        raise ValueError(f"expected uint8 [T, H, W, 3], got {video_THWC.dtype} {video_THWC.shape}")
    return video_THWC


def _even(video_THWC: np.ndarray) -> np.ndarray:
    height, width = video_THWC.shape[1:3]
    return np.pad(video_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _strip(video_THWC: np.ndarray, columns: int) -> np.ndarray:
    frames = spread_frames(_checked(video_THWC), columns)
    return tile_videos(frames[:, None], columns=len(frames))[0]


def _title_row(strip_HWC: np.ndarray, title: str) -> np.ndarray:
    if not title:
        return strip_HWC
    bar = Image.new("RGB", (strip_HWC.shape[1], 16), _PAPER)
    ImageDraw.Draw(bar).text((3, 1), title, fill=_INK, font=ImageFont.load_default(11))
    return np.concatenate([np.asarray(bar), strip_HWC])


def _pad(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    padded = np.empty((height, width, 3), dtype=np.uint8)
    padded[:] = _PAPER
    padded[: image_HWC.shape[0], : image_HWC.shape[1]] = image_HWC
    return padded
