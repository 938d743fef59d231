"""Clips and images as data URIs, small enough that dozens fit into one page.

Clips become animated WebP, which keeps true colour at a tenth of a GIF's bytes and plays in every browser; where the
imaging library was built without it, GIF. Readers who asked their system for less motion see the middle frame.

Shapes: T frames, H W pixels; uint8, 0..255.
"""

from __future__ import annotations

import base64
import io
import tempfile
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, features

from hpdm_core.data.write import write_gif

MAX_SIDE = 192
MAX_FRAMES = 48
QUALITY = 84


def clip_picture(video_THWC: np.ndarray, fps: float, alt: str, *, max_side: int = MAX_SIDE) -> str:
    """A `<picture>` that plays the clip endlessly, and stands still under reduced motion."""
    video, fps = shrunk(video_THWC, fps, max_side)
    height, width = video.shape[1:3]
    still = image_uri(video[len(video) // 2])
    return (
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
        f'<img src="{clip_uri(video, fps)}" width="{width}" height="{height}" alt="{escape(alt)}"></picture>'
    )


def clip_uri(video_THWC: np.ndarray, fps: float) -> str:
    """The clip as an endless animation in a data URI."""
    if not features.check("webp"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.gif"
            write_gif(path, video_THWC, fps)
            return _uri("image/gif", path.read_bytes())
    frames = [Image.fromarray(frame) for frame in video_THWC]
    data = io.BytesIO()
    duration = max(20, round(1000 / fps))
    frames[0].save(
        data, "WEBP", save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=QUALITY, method=4
    )
    return _uri("image/webp", data.getvalue())


def image_uri(image_HWC: np.ndarray) -> str:
    """One picture in a data URI: a photograph-like one as JPEG, a tiny or colour-mapped one as PNG."""
    data = io.BytesIO()
    if image_HWC.size <= 64 * 64 * 3:
        Image.fromarray(image_HWC).save(data, "PNG", optimize=True)
        return _uri("image/png", data.getvalue())
    Image.fromarray(image_HWC).save(data, "JPEG", quality=QUALITY)
    return _uri("image/jpeg", data.getvalue())


def shrunk(video_THWC: np.ndarray, fps: float, max_side: int) -> tuple[np.ndarray, float]:
    """The clip within `max_side` pixels and MAX_FRAMES frames, at the speed it had."""
    stride = -(-len(video_THWC) // MAX_FRAMES)
    video = video_THWC[::stride]
    height, width = video.shape[1:3]
    scale = max_side / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        video = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in video])
    return video, fps / stride


def heat_image(heat_HW: np.ndarray, ceiling: float) -> np.ndarray:
    """A map of values from 0 to `ceiling` in colours from near black over red to pale yellow: uint8 [H, W, 3]."""
    stops = np.array([(16, 14, 28), (92, 24, 84), (190, 52, 62), (245, 142, 40), (252, 246, 190)], dtype=np.float32)
    place = np.clip(heat_HW / ceiling, 0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    blend = (place - low)[..., None]
    return (stops[low] * (1 - blend) + stops[low + 1] * blend).round().astype(np.uint8)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
