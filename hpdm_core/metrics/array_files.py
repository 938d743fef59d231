"""Video arrays in `.npy` and `.npz` files: what a file holds, from its headers alone, and the arrays themselves."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from hpdm_core.errors import DataError

_ONE_AT_A_TIME = threading.Lock()
"""NumPy parses headers as Python code, which before Python 3.12 fails at random in several threads (SystemError)."""


def load_array(path: Path, key: str) -> np.ndarray:
    """The array of a `.npy` file, mapped (key ""), or one of a `.npz` file. Raises DataError."""
    try:
        if path.suffix == ".npy":
            with _ONE_AT_A_TIME:
                return np.load(path, mmap_mode="r", allow_pickle=False)
        with _ONE_AT_A_TIME, np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable NumPy file: {error}") from error


def array_shapes(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """(key, shape) of each video array in a file, from headers alone; DataError for what is not uint8 RGB video."""
    try:
        headers = _headers(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable NumPy file: {error}") from error
    videos = [item for item in headers if path.suffix == ".npy" or len(item[1]) >= 4]
    for key, shape, dtype in videos:
        where = f"{path}:{key}" if key else str(path)
        if len(shape) not in (4, 5) or shape[-1] != 3:
            raise DataError(
                f"{where} has shape {shape}", hint="expected [T, H, W, 3] or [N, T, H, W, 3], channels last"
            )
        if dtype != np.uint8:
            raise DataError(f"{where} holds {dtype}; its range is not known", hint="save uint8 frames, 0 to 255")
    if not videos:
        raise DataError(f"{path} holds no video array", hint="expected uint8 [T, H, W, 3] or [N, T, H, W, 3]")
    return [(key, shape) for key, shape, _ in videos]


def _headers(path: Path) -> list[tuple[str, tuple[int, ...], np.dtype]]:
    """(key, shape, dtype) of each array of a `.npy` (key "") or `.npz` file."""
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return [("", *_header(file))]
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                found.append((name.removesuffix(".npy"), *_header(member)))
    return found


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
