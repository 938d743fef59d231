"""The one place where video changes form: uint8 frames as files speak them, floats as networks do.

Files, stores and decoders speak uint8 `[..., T, H, W, 3]`; networks speak float `[..., 3, T, H, W]` in
[-1, 1]. Data preparation and metrics share the resize and stride operators below, so that a coarse
training patch and the real clip it is scored against went through the same arithmetic.

Shapes: T frames, H W pixels, C = 3 channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # decoding processes use the NumPy half of this file and should not pay for torch
    from torch import Tensor

Fit = Literal["crop", "stretch"]


def to_float(video_THWC: Tensor) -> Tensor:
    """uint8 `[..., T, H, W, 3]` in 0..255 to float32 `[..., 3, T, H, W]` in [-1, 1]."""
    import torch

    if video_THWC.dtype != torch.uint8 or video_THWC.shape[-1] != 3:
        raise ValueError(f"expected uint8 [..., T, H, W, 3], got {video_THWC.dtype} {tuple(video_THWC.shape)}")
    return video_THWC.movedim(-1, -4).float().div_(127.5).sub_(1.0)


def to_uint8(video_CTHW: Tensor) -> Tensor:
    """float `[..., 3, T, H, W]` in [-1, 1] to uint8 `[..., T, H, W, 3]`, rounded and clamped."""
    import torch

    if not video_CTHW.is_floating_point() or video_CTHW.shape[-4] != 3:
        raise ValueError(f"expected float [..., 3, T, H, W], got {video_CTHW.dtype} {tuple(video_CTHW.shape)}")
    levels = video_CTHW.float().add(1.0).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-4, -1).contiguous()


def resize_frames(frames_THWC: np.ndarray, size: tuple[int, int], *, fit: Fit = "crop") -> np.ndarray:
    """Resize uint8 frames `[T, H, W, 3]` to `size` = (height, width) with an antialiased Lanczos filter.

    `crop` scales so that the frame covers `size` and cuts the centre (StyleGAN-V's preparation, and
    HPDM's by inference); `stretch` ignores the aspect ratio.
    """
    height, width = frames_THWC.shape[1:3]
    if (height, width) == tuple(size):
        return frames_THWC
    box = (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        scale = max(size[0] / height, size[1] / width)
        crop_h, crop_w = size[0] / scale, size[1] / scale
        top, left = (height - crop_h) / 2, (width - crop_w) / 2
        box = (left, top, left + crop_w, top + crop_h)
    target = (size[1], size[0])
    resized = [
        np.asarray(Image.fromarray(frame).resize(target, Image.Resampling.LANCZOS, box=box)) for frame in frames_THWC
    ]
    return np.stack(resized)


def halve_frames(frames_THWC: np.ndarray) -> np.ndarray:
    """Box-filter uint8 frames `[T, H, W, 3]` to half height and width: the spatial pyramid's one filter.

    Means of 2x2 pixels, rounded half up. H and W must be even.
    """
    height, width = frames_THWC.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"cannot halve {height}x{width} frames: both sides must be even")
    rows = frames_THWC[:, 0::2].astype(np.uint16)
    rows += frames_THWC[:, 1::2]
    halved = np.empty((len(rows), height // 2, width // 2, 3), dtype=np.uint8)
    for channel in range(3):  # NumPy's loop runs along columns then: ten times faster than along three channels
        plane = rows[..., channel]
        halved[..., channel] = (plane[..., 0::2] + plane[..., 1::2] + 2) >> 2
    return halved


def frame_pyramid_sizes(size: tuple[int, int], min_side: int = 8) -> tuple[tuple[int, int], ...]:
    """The sizes, finest first, that repeated halving of `size` reaches with sides of at least `min_side`."""
    sizes = [size]
    while all(side % 2 == 0 and side // 2 >= min_side for side in sizes[-1]):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return tuple(sizes)
