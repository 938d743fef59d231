"""One clear line where files cannot be written."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpdm_core.errors import ConfigError, DataError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PLACE = frozenset({errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP})
"""What speaks against the place that was named, and not against its disk."""


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turn an OSError of the block, which must touch nothing but `place`, into a ConfigError or a DataError."""
    try:
        yield
    except OSError as error:
        message = f"cannot write to {place}: {error.strerror or error}"
        if error.errno in _NO_PLACE:
            raise ConfigError(message, hint="choose a folder that may be written") from error
        remedy = "free some space or choose" if error.errno in _FULL else "choose"
        raise DataError(message, hint=f"{remedy} another place; the same command again continues") from error


def require_writable(path: Path, option: str) -> None:
    """Raise ConfigError unless a file can be made at `path`: to be asked before the work, not after it.

    What stands there and is no regular file (a folder, a device, a pipe) is not to be replaced by one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "it is no regular file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {path}: {error.strerror}", hint="name a file elsewhere") from error
