"""The resizes that stand between a clip and I3D. Peers differ here, so the rule is a protocol field.

* `half_pixel`: PyTorch's bilinear without antialiasing (StyleGAN-V, VideoGPT, cd-fvd and all other ports);
* `half_pixel_antialias`: the same grid with an antialiasing filter when shrinking;
* `tf1_legacy`: TensorFlow 1's `resize_bilinear` defaults, source coordinate = index * in / out (the original FVD code).

`stretch` ignores the aspect ratio; `crop` brings the short side to the target and cuts the centre.

Shapes: N clips, T frames, H W pixels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ResizeRule = Literal["half_pixel", "half_pixel_antialias", "tf1_legacy"]
Fit = Literal["stretch", "crop"]


def resize_clips(x_NCTHW: Tensor, size: tuple[int, int], rule: ResizeRule, fit: Fit = "stretch") -> Tensor:
    """Resize float clips [N, C, T, H, W] to `size` = (height, width). Values keep their range."""
    n, c, t, height, width = x_NCTHW.shape
    if (height, width) == tuple(size):
        return x_NCTHW
    target = size if fit == "stretch" else _covering_size((height, width), size)
    images = x_NCTHW.transpose(1, 2).reshape(n * t, c, height, width)
    images = _legacy_bilinear(images, target) if rule == "tf1_legacy" else _half_pixel(images, target, rule)
    top, left = (target[0] - size[0]) // 2, (target[1] - size[1]) // 2
    images = images[:, :, top : top + size[0], left : left + size[1]]
    return images.reshape(n, t, c, *size).transpose(1, 2).contiguous()


def _covering_size(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size whose short side just covers `size`; the long side rounds up, as the ports do."""
    height, width = source
    scale = max(size[0] / height, size[1] / width)
    if size[0] / height >= size[1] / width:
        return size[0], max(size[1], math.ceil(width * scale))
    return max(size[0], math.ceil(height * scale)), size[1]


def _half_pixel(images: Tensor, size: tuple[int, int], rule: ResizeRule) -> Tensor:
    antialias = rule == "half_pixel_antialias"
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def _legacy_bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation whose first source sample is pixel 0, with no half-pixel shift."""
    for axis, target in ((-2, size[0]), (-1, size[1])):
        source = images.shape[axis]
        position = torch.arange(target, device=images.device, dtype=torch.float32) * (source / target)
        low = position.floor().long().clamp(max=source - 1)
        high = (low + 1).clamp(max=source - 1)
        weight = (position - low).to(images.dtype)
        if axis == -2:
            weight = weight[:, None]
        images = torch.lerp(images.index_select(axis, low), images.index_select(axis, high), weight)
    return images
