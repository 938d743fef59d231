"""I3D weights in all their public namings, and which network a file really is.

Two checkpoints circulate. FVD uses `rgb_scratch` (TF-Hub's i3d-kinetics-400 is the same file). `rgb_imagenet`,
the one most PyTorch ports ship, shares no tensor with it, and its distances are not the literature's FVD. The
table in `i3d_tensors.json` has the CRC-32C of every tensor of both, so a user's file is recognised, not believed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hpdm_core.errors import IncompatibleCheckpoint
from hpdm_core.metrics.crc32c import crc32c
from hpdm_core.metrics.i3d import I3D
from hpdm_core.metrics.random_weights import i3d_units
from hpdm_core.metrics.weight_files import read_tensors, tensor_table, tensors_digest

Network = Literal["rgb_scratch", "rgb_imagenet", "unrecognised"]
_CRC_COLUMN: dict[Network, str] = {"rgb_scratch": "crc32c_tfhub_k400", "rgb_imagenet": "crc32c_rgb_imagenet"}
_HASSONY_BRANCH = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}


@dataclass(frozen=True)
class Recognition:
    """What a set of I3D tensors is. `matched` counts the tensors of the named (or nearest) network, out of `total`."""

    network: Network
    matched: int
    total: int
    naming: str
    sha256: str
    note: str = ""

    def describe(self) -> str:
        """One line for people."""
        if self.network == "unrecognised":
            return f"unrecognised weights ({self.matched} of {self.total} tensors match a public I3D checkpoint)"
        return f"I3D Kinetics-400 {self.network}: all {self.total} tensors recognised"


@cache
def _namings() -> dict[str, dict[str, str]]:
    """Naming -> {its key: our key}, without the optional BatchNorm extras."""
    ours: dict[str, str] = {}
    hassony: dict[str, str] = {}
    names = [name for name, *_ in i3d_units()]
    for name in names:
        block, _, branch = name.partition(".")
        theirs = f"{block.lower()}.branch_{_HASSONY_BRANCH[branch]}" if branch else block[0].lower() + block[1:]
        for part in ("conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            ours[f"{name}.{part}"] = f"{name}.{part}"
            hassony[f"{theirs}.{part.replace('bn.', 'batch3d.')}"] = f"{name}.{part}"
    for part in ("weight", "bias"):
        ours[f"logits.conv3d.{part}"] = hassony[f"conv3d_0c_1x1.conv3d.{part}"] = f"logits.conv3d.{part}"
    tensorflow = {_tf_key(row["tf"]): row["torch"] for row in tensor_table()}
    return {"piergiaj/VideoGPT": ours, "hassony2": hassony, "TensorFlow": tensorflow}


def _tf_key(name: str) -> str:
    """A TF variable name without scope prefix and `:0`."""
    return re.sub(r"^.*inception_i3d/", "", name).removesuffix(":0")


def canonical_i3d(tensors: Mapping[str, Tensor], where: str = "the file") -> tuple[dict[str, Tensor], str]:
    """The 287 tensors of an I3D under our names and in PyTorch layout, and the naming they came in.

    Missing `bn.weight`s become ones, as TensorFlow has none. Raises IncompatibleCheckpoint if a tensor is missing
    or has another shape.
    """
    shapes = {key: value.shape for key, value in _template().items()}
    best, found = "", dict[str, Tensor]()
    for naming, mapping in _namings().items():
        keyed = {_tf_key(key): value for key, value in tensors.items()} if naming == "TensorFlow" else tensors
        hits = {ours: keyed[theirs] for theirs, ours in mapping.items() if theirs in keyed}
        if len(hits) > len(found):
            best, found = naming, hits
    result: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        value = found.get(key)
        if value is None and key.endswith("bn.weight"):
            value = torch.ones(shape)
        if value is None:
            raise IncompatibleCheckpoint(
                f"{where} is not an I3D RGB network: no tensor for {key} ({len(found)} of {len(shapes)} found)",
                hint="`hpdm weights list` names the files that work",
            )
        if value.ndim == 5 and best == "TensorFlow" and key.endswith("conv3d.weight"):
            value = value.permute(4, 3, 0, 1, 2)
        value = value.reshape(-1) if len(shape) == 1 else value
        if value.shape != shape:
            raise IncompatibleCheckpoint(
                f"{where}: {key} has shape {tuple(value.shape)}, expected {tuple(shape)}",
                hint="FVD needs the RGB network with 400 Kinetics classes",
            )
        result[key] = value.to(torch.float32).contiguous()
    return result, best


@cache
def _template() -> dict[str, Tensor]:
    with torch.device("meta"):
        state = I3D().state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def recognise(tensors: Mapping[str, Tensor], naming: str = "") -> Recognition:
    """Compare canonical tensors with the public checkpoints, tensor by tensor."""
    rows = tensor_table()
    matches: dict[Network, int] = {"rgb_scratch": 0, "rgb_imagenet": 0}
    for row in rows:
        value = tensors[row["torch"]]
        value = value.permute(2, 3, 4, 1, 0) if value.ndim == 5 else value
        checksum = f"{crc32c(value.contiguous().numpy().astype('<f4', copy=False)):08x}"
        for network in matches:
            matches[network] += checksum == row[_CRC_COLUMN[network]]
    gammas_are_one = all(bool((value == 1).all()) for key, value in tensors.items() if key.endswith("bn.weight"))
    nearest = max(matches, key=lambda network: matches[network])
    complete = matches[nearest] == len(rows) and gammas_are_one
    network: Network = nearest if complete else "unrecognised"
    note = "" if gammas_are_one else "BatchNorm scales are not all one, as they are in the original"
    return Recognition(network, matches[nearest], len(rows), naming, tensors_digest(tensors), note)


def load_i3d(path: Path, *, eps: float = 1.0e-3, allow_imagenet: bool = False) -> tuple[I3D, Recognition]:
    """I3D with the weights of `path`, ready for evaluation, and what they were recognised as.

    Raises WeightsMissing, IncompatibleCheckpoint, and for `rgb_imagenet` IncompatibleCheckpoint unless allowed.
    """
    tensors, naming = canonical_i3d(read_tensors(path), str(path))
    recognition = recognise(tensors, naming)
    if recognition.network == "rgb_imagenet" and not allow_imagenet:
        raise IncompatibleCheckpoint(
            f"{path} is I3D rgb_imagenet; FVD is defined on rgb_scratch, and the two share no tensor",
            hint="use the rgb_scratch weights (`hpdm weights list`), or pass --allow-imagenet and say so",
        )
    return i3d_from(tensors, eps), recognition


def i3d_from(tensors: Mapping[str, Tensor], eps: float) -> I3D:
    """A frozen I3D holding canonical `tensors`."""
    network = I3D(eps=eps)
    network.load_state_dict(dict(tensors), strict=False)
    return network.eval().requires_grad_(False)


def tensorflow_layout(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Canonical tensors under TensorFlow's names and axis order: what the original graph would be given."""
    arrays: dict[str, np.ndarray] = {}
    for row in tensor_table():
        value = tensors[row["torch"]]
        value = value.permute(2, 3, 4, 1, 0) if value.ndim == 5 else value
        arrays[row["tf"]] = np.ascontiguousarray(value.numpy()).reshape(row["tf_shape"])
    return arrays
