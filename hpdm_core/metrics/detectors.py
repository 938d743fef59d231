"""Feature networks behind one small protocol, so that FVD's I3D can be exchanged for another.

A detector turns uint8 clips into one vector each and says which network it is. `i3d` needs the trained weights,
`random-i3d` is seeded and offline (its distance is labelled rFVD), and `package.module:factory` names the user's own:
a callable that takes (section, weights path or None, device) and returns a Detector.

Shapes: N clips, T frames, H W pixels, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hpdm_core.errors import ConfigError, HpdmError, WeightsMissing
from hpdm_core.metrics.catalogue import find_file
from hpdm_core.metrics.i3d import I3D, MIN_FRAMES, SIDE
from hpdm_core.metrics.i3d_weights import i3d_from, load_i3d
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.metrics.random_weights import random_i3d_weights
from hpdm_core.metrics.resize import resize_clips
from hpdm_core.metrics.weight_files import tensors_digest


@runtime_checkable
class Detector(Protocol):
    """A feature network."""

    @property
    def name(self) -> str:
        """Its name in results."""
        ...

    @property
    def label(self) -> str:
        """What a Fréchet distance over its features is called."""
        ...

    @property
    def dimension(self) -> int:
        """Feature width D."""
        ...

    @property
    def min_frames(self) -> int:
        """The shortest clip it takes."""
        ...

    @property
    def sha256(self) -> str:
        """A hash of its weights."""
        ...

    def features(self, clips_NTHWC: Tensor) -> Tensor:
        """uint8 clips [N, T, H, W, 3] on the detector's device to float32 features [N, D]."""
        ...

    def probabilities(self, features_ND: Tensor) -> Tensor | None:
        """Class probabilities [N, K] from features, None where the network has no classes."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a reader must know of the network, as plain JSON."""
        ...


@dataclass
class I3DDetector:
    """I3D with the preprocessing of a protocol's detector section."""

    network: I3D
    section: DetectorSection
    label: str
    sha256: str
    about: dict[str, Any] = field(default_factory=dict)
    min_frames: int = MIN_FRAMES

    @property
    def name(self) -> str:
        """The name in the protocol."""
        return self.section.name

    @property
    def dimension(self) -> int:
        """400 logits or 1024 pooled activations."""
        return 400 if self.section.output == "logits" else 1024

    def features(self, clips_NTHWC: Tensor) -> Tensor:
        """uint8 clips [N, T, H, W, 3] to float32 features [N, D]."""
        low, high = self.section.input_range
        x = clips_NTHWC.movedim(-1, 1).float().mul_((high - low) / 255).add_(low)
        x = resize_clips(x, (SIDE, SIDE), self.section.resize, self.section.fit)
        if self.section.precision == "fp32":
            return self._run(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.section.precision == "bf16"):
            return self._run(x.contiguous(memory_format=torch.channels_last_3d)).float()

    def _run(self, x_NCTHW: Tensor) -> Tensor:
        """The network with TF32 as the protocol says, whatever the process has set."""
        tf32 = self.section.precision == "tf32"
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32, benchmark=x_NCTHW.is_cuda):
            return self.network(x_NCTHW, self.section.output)

    def probabilities(self, features_ND: Tensor) -> Tensor | None:
        """Softmax over the 400 Kinetics classes; None for pooled features."""
        return features_ND.double().softmax(dim=1) if self.section.output == "logits" else None

    def facts(self) -> dict[str, Any]:
        """Network, naming and checksum."""
        return {"name": self.name, "label": self.label, "sha256": self.sha256, **self.about}


def build_detector(
    section: DetectorSection, *, weights: Path | None, device: torch.device | str, allow_imagenet: bool = False
) -> Detector:
    """The detector that `section` names, on `device`.

    Raises WeightsMissing (with the remedy) where I3D's file is absent, IncompatibleCheckpoint where it is something
    else, ConfigError for an unknown name.
    """
    if section.name == "random-i3d":
        tensors = random_i3d_weights()
        about = {"network": "seeded random I3D: not FVD, comparable only with itself"}
        return I3DDetector(i3d_from(tensors, section.eps).to(device), section, "rFVD", tensors_digest(tensors), about)
    if section.name == "i3d":
        return _trained_i3d(section, weights, device, allow_imagenet)
    if ":" in section.name:
        return _foreign(section, weights, device)
    raise ConfigError(
        f"unknown detector {section.name!r}", hint="there are i3d, random-i3d, and package.module:factory of your own"
    )


def _trained_i3d(
    section: DetectorSection, weights: Path | None, device: torch.device | str, allow_imagenet: bool
) -> Detector:
    path = weights or find_file("i3d")
    if path is None:
        raise WeightsMissing(
            "FVD needs the I3D Kinetics-400 weights (rgb_scratch), and no file was given or found",
            hint="`hpdm weights list` says where to get them; then pass --weights FILE, or keep the file as "
            "$HPDM_WEIGHTS/i3d.safetensors. To test a pipeline without them: --detector random-i3d (not FVD)",
        )
    network, recognition = load_i3d(path, eps=section.eps, allow_imagenet=allow_imagenet)
    label = "FVD" if recognition.network == "rgb_scratch" else f"FVD[{recognition.network}]"
    about = {"network": recognition.describe(), "naming": recognition.naming, "file": path.name}
    return I3DDetector(network.to(device), section, label, recognition.sha256, about)


def _foreign(section: DetectorSection, weights: Path | None, device: torch.device | str) -> Detector:
    module, _, attribute = section.name.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot import detector {section.name}: {error}") from error
    try:
        detector = factory(section, weights, device)
    except HpdmError:
        raise
    except Exception as error:  # whatever the user's own code does, with its place under --traceback
        raise ConfigError(
            f"detector {section.name} cannot be built: {type(error).__name__}: {error}",
            hint="it is called with (section, weights path or None, device) and returns a detector",
        ) from error
    if not isinstance(detector, Detector):
        raise ConfigError(
            f"{section.name} did not return a detector",
            hint="it needs name, label, dimension, min_frames, sha256, features, probabilities and facts",
        )
    return detector
