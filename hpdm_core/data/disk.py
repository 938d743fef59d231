"""Files that appear whole or not at all, and one clear line where they cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpdm_core.errors import ConfigError, DataError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What only more space helps against."""
_NO_PLACE = frozenset({errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP})
"""What speaks against the place that was named, and not against its disk."""


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Let an OSError of the block name `path`: that of a write names nothing, that of a move a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def replacing(path: Path, partial: Path) -> Iterator[None]:
    """Move `partial`, which the block writes, to `path`. Where that fails, `path` is as before and `partial` gone."""
    try:
        with naming(path):
            yield
            partial.replace(path)
    finally:
        with suppress(OSError):  # it is gone where all went well, and must not hide the error where it did not
            partial.unlink()


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary name of the same suffix beside `path`, as `replacing` moves it; each process has its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with replacing(path, partial):
        yield partial


@contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place at the end. Where the block fails, all is as before."""
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("tmp", "old"))
    for leftover in (partial, old):
        if leftover.exists():  # of a process that was killed
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():  # a folder cannot take the place of a full one
            folder.replace(old)
        partial.replace(folder)
    finally:  # gone where all went well; where it did not, a full disk needs its space
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turn an OSError of the block, which must touch nothing but `place`, into a ConfigError or a DataError."""
    try:
        yield
    except OSError as error:
        message = f"cannot write to {place}: {error.strerror or error}"
        if error.errno in _NO_PLACE:
            raise ConfigError(message, hint="choose a folder that may be written") from error
        remedy = "free some space or choose" if error.errno in FULL else "choose"
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
        remedy = "free some space, or name" if error.errno in FULL else "name"
        raise ConfigError(
            f"{option}: cannot write {path}: {error.strerror}", hint=f"{remedy} a file elsewhere"
        ) from error
