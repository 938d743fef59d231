"""Video arrays in `.npy` and `.npz` files: what a file holds, from its headers alone, and the arrays themselves."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from hpdm_core.errors import DataError

_PARSING = threading.Lock()
"""NumPy reads headers with `ast`, which counts its depth for all threads together in some Pythons (3.11.7 among them):
where garbage collection lets another thread in meanwhile, it ends with a SystemError.
"""


def load_array(path: Path, key: str) -> np.ndarray:
    """The array of a `.npy` file, mapped (key ""), or one of a `.npz` file. Raises DataError."""
    try:
        if path.suffix == ".npy":
            with _PARSING:
                return np.load(path, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            shape, fortran, dtype = _header(member)
            return np.frombuffer(bytearray(member.read()), dtype).reshape(shape, order="F" if fortran else "C")
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
            shape, _, dtype = _header(file)
            return [("", shape, dtype)]
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                shape, _, dtype = _header(member)
                found.append((name.removesuffix(".npy"), shape, dtype))
    return found


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type, after which the file stands at the numbers."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _PARSING:
        return read(file)
