"""Reading tensors from the file formats in which metric networks circulate, without running anybody's code."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from hpdm_core.errors import IncompatibleCheckpoint, WeightsMissing
from hpdm_core.nn.tensor_files import read_plain_tensors

PREFIXES = ("module.", "model.", "net.", "i3d.", "c3d.")


@cache
def tensor_table() -> list[dict[str, Any]]:
    """The 230 tensors of the public I3D checkpoints: names, TF shapes, file offsets, CRC-32C of both networks."""
    text = resources.files("hpdm_core.metrics").joinpath("i3d_tensors.json").read_text(encoding="utf-8")
    return json.loads(text)["tensors"]


def read_tensors(path: Path, *, torchscript: bool = False) -> dict[str, Tensor]:
    """All tensors of a weights file, on the CPU, under the names that the file gives them.

    Reads safetensors, NumPy .npz, PyTorch .pt/.pth state dicts (`weights_only`: plain tensors, no code) and the
    data file of the two public TensorFlow I3D checkpoints. A TorchScript archive holds a program; it is opened
    only on request. Raises WeightsMissing where there is no file, IncompatibleCheckpoint where it is none of these.
    """
    if not path.is_file():
        raise WeightsMissing(f"no weights file at {path}", hint="`hpdm weights list` says where each file comes from")
    try:
        is_tensorflow = ".data-" in path.name or path.suffix == ".data"
        tensors = _read_tf_data(path) if is_tensorflow else read_plain_tensors(path, torchscript=torchscript)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IncompatibleCheckpoint(
            f"{path} cannot be read as plain tensors: {reason}",
            hint="expected safetensors, .npz, a PyTorch state dict, or a TensorFlow .data-00000-of-00001 file",
        ) from error
    if not tensors:
        raise IncompatibleCheckpoint(f"{path} holds no tensors", hint="give the state dict, not an optimiser state")
    return _strip_prefix(tensors)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors' bytes in sorted key order: the same for every file format of one network."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop wrapper prefixes that every name shares."""
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _read_tf_data(path: Path) -> dict[str, Tensor]:
    """The tensors of a TensorFlow I3D data file, which stores them back to back at the table's offsets."""
    table = tensor_table()
    expected = max(row["offset"] + row["bytes"] for row in table)
    if path.stat().st_size != expected:
        raise ValueError(f"{path.stat().st_size} bytes; the I3D RGB checkpoints have {expected}")
    raw = path.read_bytes()
    return {
        row["tf"]: torch.from_numpy(
            np.frombuffer(raw, "<f4", row["bytes"] // 4, row["offset"]).reshape(row["tf_shape"]).copy()
        )
        for row in table
    }
