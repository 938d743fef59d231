"""Decoders that wait and fail on purpose, for tests; as `--decoders tests.support.decoders:failing`."""

from __future__ import annotations

import time
from pathlib import Path

from hpdm_core.data.backends import Chunks, load_backend


class DoesNotComeBack(Exception):
    """Pickles, and cannot be made again from its only argument."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def waiting(path: Path, chunk: int) -> Chunks:
    """PyAV, which for files named `*slow*` waits as long as there is a file `wait` beside them."""
    while "slow" in path.name and (path.parent / "wait").exists():
        time.sleep(0.02)
    return load_backend("av")(path, chunk)


def failing(path: Path, chunk: int) -> Chunks:
    """PyAV, with the bugs of real decoders for files of certain names."""
    errors = {
        "memory": MemoryError("too big"),
        "value": ValueError("buffer is too small"),
        "own": DoesNotComeBack(1, 2),
        "disk": OSError(5, "Input/output error"),
    }
    if path.stem in errors:
        raise errors[path.stem]
    return load_backend("av")(path, chunk)
