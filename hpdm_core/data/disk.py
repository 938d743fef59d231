"""One clear line where the disk under a store cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpdm_core.errors import DataError


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turn an OSError of the block, which must touch nothing but `place`, into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to {place}: {error.strerror or error}",
            hint="free some space or choose another place; the same command again continues",
        ) from error
