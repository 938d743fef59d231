"""Reading tensors from the file formats in which metric networks circulate, without running anybody's code."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpdm_core.errors import IncompatibleCheckpoint, WeightsMissing

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
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                tensors = {key: torch.from_numpy(archive[key]) for key in archive.files}
        elif ".data-" in path.name or path.suffix == ".data":
            tensors = _read_tf_data(path)
        elif _is_torchscript(path):
            tensors = _read_torchscript(path, torchscript)
        else:
            tensors = _read_state_dict(path)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IncompatibleCheckpoint(
            f"{path} cannot be read as plain tensors: {reason}",
            hint="expected safetensors, .npz, a PyTorch state dict, or a TensorFlow .data-00000-of-00001 file",
        ) from error
    if not tensors:
        raise IncompatibleCheckpoint(f"{path} holds no tensors", hint="give the state dict, not an optimiser state")
    return _strip_prefix(tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write safetensors atomically: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}, partial, dict(metadata))
    partial.replace(path)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors' bytes in sorted key order: the same for every file format of one network."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """A PyTorch state dict by the unpickler that makes nothing but tensors and plain containers."""
    try:
        return _tensors_of(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # arbitrary bytes make an unpickler raise anything
        raise ValueError(error) from error


def _tensors_of(loaded: Any) -> dict[str, Tensor]:
    """The state dict inside what `torch.load` returned; common wrappers are opened."""
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        return {}
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


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


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path, allowed: bool) -> dict[str, Tensor]:
    if not allowed:
        raise IncompatibleCheckpoint(
            f"{path} is a TorchScript archive: it holds a program besides the tensors",
            hint="if you trust its source, `hpdm weights convert --torchscript` opens it once and keeps the tensors",
        )
    module = torch.jit.load(str(path), map_location="cpu")
    return {key: value.detach() for key, value in module.state_dict().items()}
