"""The I3D RGB network (Carreira & Zisserman 2017) as FVD uses it, equal to the TF-Hub graph to rounding.

What the ports disagree on is explicit here: TensorFlow's asymmetric `SAME` padding, the BatchNorm epsilon (1e-3 in
the original graph, 1e-5 in one family of ports) and which output is "the features": the 400 logits averaged over
time, or the 1024 pooled activations below them. Preprocessing lives in `resize.py`; weights in `i3d_weights.py`.

Shapes: N clips, C channels, T frames, H W pixels, K = 400 classes.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.errors import DataError

Output = Literal["logits", "pooled"]
MIN_FRAMES = 9  # the head's window spans two positions, and T/8 rounds up
SIDE = 224

# name: (inputs, outputs of: branch 0, branch 1 reduce and 3x3, branch 2 reduce and 3x3, branch 3)
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def pad_same(x_NCTHW: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zero padding as TensorFlow's `SAME`: the odd one goes behind. Zeros also suit the max-pools: inputs are >= 0."""
    sides: list[int] = []
    for size, k, s in zip(reversed(x_NCTHW.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x_NCTHW, sides) if any(sides) else x_NCTHW


class Unit(nn.Module):
    """Convolution without bias, BatchNorm, ReLU. `bn.weight` is all ones in the original."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, eps: float) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel, kernel, kernel), (stride, stride, stride)
        self.conv3d = nn.Conv3d(inputs, outputs, self.kernel, self.stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=eps)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """[N, inputs, T, H, W] to [N, outputs, T/stride, H/stride, W/stride], sizes rounded up."""
        return F.relu_(self.bn(self.conv3d(pad_same(x_NCTHW, self.kernel, self.stride))))


class Pool(nn.Module):
    """Max-pool with `SAME` padding."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Sizes divide by the stride, rounded up."""
        return F.max_pool3d(pad_same(x_NCTHW, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """An Inception block: four branches joined along channels."""

    def __init__(self, inputs: int, widths: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0], 1, 1, eps)
        self.b1a, self.b1b = Unit(inputs, widths[1], 1, 1, eps), Unit(widths[1], widths[2], 3, 1, eps)
        self.b2a, self.b2b = Unit(inputs, widths[3], 1, 1, eps), Unit(widths[3], widths[4], 3, 1, eps)
        self.pool = Pool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(inputs, widths[5], 1, 1, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, T, H, W] to [N, sum of branch widths, T, H, W]."""
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.pool(x))], dim=1)


class Logits(nn.Module):
    """The last 1x1x1 convolution, with bias."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, classes, 1)


class I3D(nn.Module):
    """The network. Parameter names are those of the piergiaj and VideoGPT files."""

    def __init__(self, *, classes: int = 400, eps: float = 1.0e-3) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2, eps)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, 1, eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, 1, eps)
        for name, (inputs, widths) in MIXED.items():
            setattr(self, name, Mixed(inputs, widths, eps))
        self.pool_2a = Pool((1, 3, 3), (1, 2, 2))
        self.pool_3a = Pool((1, 3, 3), (1, 2, 2))
        self.pool_4a = Pool((3, 3, 3), (2, 2, 2))
        self.pool_5a = Pool((2, 2, 2), (2, 2, 2))
        self.logits = Logits(1024, classes)

    def forward(self, x_NCTHW: Tensor, output: Output = "logits") -> Tensor:
        """Features of clips in [-1, 1] of 224x224: logits [N, 400] or pooled activations [N, 1024], mean over time.

        Raises DataError for fewer than 9 frames or another frame size.
        """
        frames, height, width = x_NCTHW.shape[2:]
        if frames < MIN_FRAMES:
            raise DataError(f"I3D needs clips of at least {MIN_FRAMES} frames, got {frames}")
        if (height, width) != (SIDE, SIDE):
            raise DataError(f"I3D needs {SIDE}x{SIDE} frames, got {height}x{width}")
        stem = [self.Conv3d_1a_7x7, self.pool_2a, self.Conv3d_2b_1x1, self.Conv3d_2c_3x3, self.pool_3a]
        groups = {letter: [getattr(self, n) for n in MIXED if n[6] == letter] for letter in "345"}
        x = x_NCTHW
        for layer in itertools.chain(stem, groups["3"], [self.pool_4a], groups["4"], [self.pool_5a], groups["5"]):
            x = layer(x)
        pooled = F.avg_pool3d(x, (2, 7, 7), stride=1)
        if output == "pooled":
            return pooled.mean(dim=(2, 3, 4))
        return self.logits.conv3d(pooled).mean(dim=(2, 3, 4))
