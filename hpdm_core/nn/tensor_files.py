"""Tensors in files: reading those in which networks circulate, without running anybody's code, and writing ours."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpdm_core.errors import IncompatibleCheckpoint


def read_plain_tensors(path: Path, *, torchscript: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file, NumPy .npz or PyTorch state dict, on the CPU, under the file's names.

    A TorchScript archive holds a program; it is opened only if `torchscript` says so, and IncompatibleCheckpoint is
    raised otherwise. What is none of these raises whatever its reader does.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {key: torch.from_numpy(archive[key]) for key in archive.files}
    if _is_torchscript(path):
        return _read_torchscript(path, torchscript)
    return _read_state_dict(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write safetensors atomically: a reader sees the old file or the whole new one. Raises OSError naming `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    contiguous = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        save_safetensors(partial, contiguous, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (SafetensorError, OSError) as error:  # the former wraps what the system said
        found = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
    finally:
        with suppress(OSError):  # it is gone where all went well, and must not hide the error where it did not
            partial.unlink()


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """safetensors' own writing, readable by whom the user's other files are: it would leave them to the owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, dict(metadata))
    path.chmod(mode)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """A PyTorch state dict by the unpickler that makes nothing but tensors and plain containers."""
    try:
        return _tensors_of(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:  # of the reader of archives: it says what is damaged
        raise ValueError(error) from error
    except Exception as error:  # arbitrary bytes make an unpickler raise anything
        # Not its own text: that advises to load the file in the way that runs its code.
        found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        raise ValueError(f"it holds a {found[1]} too" if found else "it is no file of tensors") from error


def _tensors_of(loaded: Any) -> dict[str, Tensor]:
    """The state dict inside what `torch.load` returned; common wrappers are opened."""
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        return {}
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


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
