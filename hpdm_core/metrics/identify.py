"""What a weights file is, whichever network it holds, and its conversion to safetensors under our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hpdm_core.errors import IncompatibleCheckpoint
from hpdm_core.metrics.c3d import MEAN, c3d_from
from hpdm_core.metrics.i3d_weights import canonical_i3d, recognise
from hpdm_core.metrics.weight_files import read_tensors, tensors_digest
from hpdm_core.nn.tensor_files import write_tensors


@dataclass(frozen=True)
class Identity:
    """What a file was found to be. `literature`: it is the network of published FVDs."""

    kind: str
    description: str
    naming: str
    sha256: str
    literature: bool = False
    note: str = ""


def identify(path: Path, *, torchscript: bool = False) -> Identity:
    """Recognise a weights file. Raises WeightsMissing, or IncompatibleCheckpoint where it is no metric's network."""
    return _identify(path, torchscript)[0]


def convert_weights(path: Path, target: Path, *, torchscript: bool = False, mean: Path | None = None) -> Identity:
    """Write the network of `path` to `target` as safetensors under our names, with what it was recognised as.

    `mean`: the file of C3D's mean volume, where it is not in `path` itself.
    """
    found, tensors = _identify(path, torchscript, mean)
    metadata = {"hpdm-network": found.kind, "description": found.description, "sha256": found.sha256}
    write_tensors(target, tensors, metadata)
    return found


def _identify(path: Path, torchscript: bool, mean: Path | None = None) -> tuple[Identity, dict[str, Tensor]]:
    raw = read_tensors(path, torchscript=torchscript)
    if mean is not None:
        raw[MEAN] = next(iter(read_tensors(mean).values()))
    if _looks_like_c3d(raw):
        tensors = dict(c3d_from(raw, str(path)).state_dict())
        digest = tensors_digest(tensors)
        text = "C3D-UCF101 with its mean volume (no public checksums to compare with)"
        return Identity("c3d", text, "chainer" if "conv1a/W" in raw else "PyTorch", digest), tensors
    try:
        tensors, naming = canonical_i3d(raw, str(path))
    except IncompatibleCheckpoint as error:
        raise IncompatibleCheckpoint(f"{error}; nor is it C3D", hint=error.hint) from error
    found = recognise(tensors, naming)
    literature = found.network == "rgb_scratch"
    return Identity("i3d", found.describe(), naming, found.sha256, literature, found.note), tensors


def _looks_like_c3d(tensors: Mapping[str, Tensor]) -> bool:
    return "conv1a/W" in tensors or "conv1a.weight" in tensors
