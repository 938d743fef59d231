"""LPIPS (Zhang et al. 2018, version 0.1) on VGG16: how far two frames look apart.

Both networks come from files that the user supplies, as plain tensors: VGG16 under torchvision's names
(`features.0.weight`, …), the linear heads under LPIPS' (`lin0.model.1.weight`, with or without `vgg.` in
front). They are no part of the model: a weights file does not hold them and sampling never reads them.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hpdm_core.errors import IncompatibleCheckpoint, WeightsMissing
from hpdm_core.families.pvdm.config import PerceptualSection

logger = logging.getLogger(__name__)

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""torchvision's indices of VGG16's convolutions; each stage ends where LPIPS reads, then halves the sides."""
WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS' input normalisation, for pixels in [-1, 1]."""
EPS = 1e-10


class Lpips(nn.Module):
    """The LPIPS distance. Frames must be at least 16 pixels on each side."""

    def __init__(self) -> None:
        super().__init__()
        convs, channels = {}, 3
        for stage, width in zip(STAGES, WIDTHS, strict=True):
            for index in stage:
                convs[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
        self.features = nn.ModuleDict(convs)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in WIDTHS)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """[B] distances between RGB frames in [-1, 1], float32."""
        total = torch.zeros(len(a_BCHW), device=a_BCHW.device)
        for head, a, b in zip(self.heads, self._stages(a_BCHW), self._stages(b_BCHW), strict=True):
            total = total + head((_unit(a) - _unit(b)).square()).float().mean(dim=(1, 2, 3))
        return total

    def _stages(self, x_BCHW: Tensor) -> list[Tensor]:
        x, read = (x_BCHW - self.get_buffer("shift")) / self.get_buffer("scale"), []
        for stage in STAGES:
            if read:
                x = F.max_pool2d(x, 2)
            for index in stage:
                x = F.relu(self.features[str(index)](x))
            read.append(x)
        return read


def _unit(x_BCHW: Tensor) -> Tensor:
    """Features of unit length at every pixel; zeros stay zeros and give finite gradients."""
    x = x_BCHW.float()
    return x / (x.square().sum(dim=1, keepdim=True) + EPS**2).sqrt()


class PerceptualLoss:
    """LPIPS from a config's files, read when first asked for; None where the config names none."""

    def __init__(self, section: PerceptualSection) -> None:
        self.section = section
        self._network: Lpips | None = None
        self._said = False

    def __call__(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor | None:
        """The mean LPIPS distance of two batches of frames, or None without weights (said once)."""
        if self.section.vgg is None or self.section.heads is None:
            if not self._said:
                logger.warning(
                    "no LPIPS weights are given: reconstruction trains on L1 alone, and blurs more "
                    "(model.training.perceptual.vgg and .heads name them)"
                )
            self._said = True
            return None
        if self._network is None:
            self._network = load_lpips(Path(self.section.vgg), Path(self.section.heads)).to(a_BCHW.device)
        return self._network(a_BCHW, b_BCHW).mean()


def load_lpips(vgg: Path, heads: Path) -> Lpips:
    """The frozen network from two safetensors files; WeightsMissing or IncompatibleCheckpoint if they do not serve."""
    trunk, linear = _read(vgg), _read(heads)
    network = Lpips()
    state = {}
    for name in network.state_dict():
        part, index, key = name.split(".")
        if part == "features":
            state[name] = _tensor(trunk, vgg, f"features.{index}.{key}")
        else:
            state[name] = _tensor(linear, heads, f"vgg.lin{index}.model.1.weight", f"lin{index}.model.1.weight")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise IncompatibleCheckpoint(f"{vgg} or {heads} does not fit LPIPS on VGG16: {error}") from error
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsMissing(
            f"no LPIPS weights at {path}", hint="leave model.training.perceptual out to train on L1 alone"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise IncompatibleCheckpoint(f"{path} is not a readable safetensors file: {error}") from error


def _tensor(tensors: Mapping[str, Tensor], path: Path, *names: str) -> Tensor:
    """The tensor under the first of `names` that the file has, in fp32."""
    for name in names:
        if name in tensors:
            return tensors[name].float()
    raise IncompatibleCheckpoint(
        f"{path} has no tensor {' or '.join(names)}",
        hint="expected torchvision's VGG16 and LPIPS' linear heads, as safetensors",
    )
