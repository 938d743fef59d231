"""C3D fine-tuned on UCF-101 (Tran et al. 2015; TGANv2's copy): the classifier behind the literature's Inception Score.

Preprocessing as TGANv2 does it: BGR, times 128, every frame to 112x112 bilinear with aligned corners, plus 128, minus
the mean volume. Pools cover the whole input (sizes round up).

Shapes: N clips, C = 3 channels, T = 16 frames, H W pixels, K = 101 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.errors import DataError, IncompatibleCheckpoint, WeightsMissing
from hpdm_core.metrics.catalogue import find_file
from hpdm_core.metrics.weight_files import read_tensors, tensors_digest

FRAMES, SIDE, CLASSES = 16, 112, 101
CONVOLUTIONS = {
    "conv1a": (3, 64),
    "conv2a": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}
LINEARS = {"fc6": (8192, 4096), "fc7": (4096, 4096), "fc8": (4096, CLASSES)}
_POOLED_AFTER = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")
MEAN = "mean"
_MEAN_SHAPE = (3, 16, 128, 171)


class C3D(nn.Module):
    """The network; its buffer `mean` is the BGR mean volume, cropped as the input is."""

    mean: Tensor
    fc6: nn.Linear
    fc7: nn.Linear
    fc8: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        for name, (inputs, outputs) in CONVOLUTIONS.items():
            setattr(self, name, nn.Conv3d(inputs, outputs, 3, padding=1))
        for name, (inputs, outputs) in LINEARS.items():
            setattr(self, name, nn.Linear(inputs, outputs))
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIDE, SIDE))

    def preprocess(self, x_NCTHW: Tensor) -> Tensor:
        """RGB clips in [-1, 1] to the network's BGR input of about -128 to 128, [N, 3, 16, 112, 112]."""
        n, c, t, h, w = x_NCTHW.shape
        images = x_NCTHW.flip(1).mul(128.0).transpose(1, 2).reshape(n * t, c, h, w)
        images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=True)
        return images.reshape(n, t, c, SIDE, SIDE).transpose(1, 2) + 128.0 - self.mean

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Class scores [N, 101] before the softmax, of RGB clips [N, 3, 16, H, W] in [-1, 1]."""
        if x_NCTHW.shape[2] != FRAMES:
            raise DataError(f"C3D takes clips of {FRAMES} frames, got {x_NCTHW.shape[2]}")
        x = self.preprocess(x_NCTHW)
        for name in CONVOLUTIONS:
            x = F.relu_(getattr(self, name)(x))
            if name in _POOLED_AFTER:
                kernel = (1, 2, 2) if name == "conv1a" else (2, 2, 2)
                x = F.max_pool3d(x, kernel, kernel, ceil_mode=True)
        x = x.flatten(1)
        x = F.relu_(self.fc6(x))
        x = F.relu_(self.fc7(x))
        return self.fc8(x)


def c3d_from(tensors: Mapping[str, Tensor], where: str = "the file") -> C3D:
    """C3D from `NAME.weight`/`NAME.bias` (PyTorch) or `NAME/W`/`NAME/b` (chainer) and `mean` [3, 16, 128, 171].

    Raises IncompatibleCheckpoint if a tensor is missing or has another shape.
    """
    network = C3D()
    state: dict[str, Tensor] = {}
    for key, template in network.state_dict().items():
        name, _, part = key.partition(".")
        chainer = f"{name}/{'W' if part == 'weight' else 'b'}"
        found = tensors.get(key, tensors.get(chainer))
        if found is None:
            raise IncompatibleCheckpoint(
                f"{where} is not a C3D-UCF101 network: no tensor for {key}",
                hint="network and mean volume go into one file: hpdm weights convert NET.npz --mean mean2.npz",
            )
        if key == MEAN and tuple(found.shape) == _MEAN_SHAPE:
            found = found[:, :, 8 : 8 + SIDE, 8 : 8 + SIDE]
        if found.shape != template.shape:
            raise IncompatibleCheckpoint(
                f"{where}: {key} has shape {tuple(found.shape)}, expected {tuple(template.shape)}"
            )
        state[key] = found.to(torch.float32)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


@dataclass
class C3DDetector:
    """C3D as a detector: its features are the 101 class scores."""

    network: C3D
    sha256: str
    name: str = "c3d"
    label: str = "C3D"
    dimension: int = CLASSES
    min_frames: int = FRAMES
    about: dict[str, Any] = field(default_factory=dict)

    def features(self, clips_NTHWC: Tensor) -> Tensor:
        """uint8 clips [N, 16, H, W, 3] to class scores [N, 101]."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.network(clips_NTHWC.movedim(-1, 1).float().div_(127.5).sub_(1.0))

    def probabilities(self, features_ND: Tensor) -> Tensor | None:
        """Softmax over the UCF-101 classes."""
        return features_ND.double().softmax(dim=1)

    def facts(self) -> dict[str, Any]:
        """Network and checksum."""
        return {"name": self.name, "sha256": self.sha256, **self.about}


def build_c3d(weights: Path | None, device: torch.device | str) -> C3DDetector:
    """C3D-UCF101 from `weights` or the weights folder. Raises WeightsMissing or IncompatibleCheckpoint."""
    path = weights or find_file("c3d")
    if path is None:
        raise WeightsMissing(
            "the Inception Score of UCF-101 needs C3D-UCF101 weights, and no file was given or found",
            hint="pass --c3d-weights FILE (`hpdm weights list` says where it comes from), or use --set "
            "inception.network=detector for the I3D-based score, which is another number",
        )
    tensors = read_tensors(path)
    network = c3d_from(tensors, str(path)).to(device)
    return C3DDetector(network, tensors_digest(network.state_dict()), about={"file": path.name})
