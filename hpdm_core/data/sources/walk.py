"""Listing a directory tree: sorted, following links once, and reporting what cannot be listed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hpdm_core.data.sources.base import Problems

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".avi", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".mpg", ".mpeg",
    ".wmv", ".flv", ".gif", ".ts", ".m2ts", ".ogv", ".3gp", ".y4m",
})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
# fmt: on
TABLE_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass
class Listing:
    """The video and image files below a root, sorted by relative path; `others` counts the rest, tables among them."""

    root: Path
    videos: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: int = 0
    tables: int = 0


def list_files(root: Path, problems: Problems) -> Listing:
    """Every file below `root`, hidden ones excepted. A link back to a parent folder is a problem, not a hang."""
    listing = Listing(root)
    _walk(root, (), listing, problems)
    return listing


def _walk(folder: Path, parents: tuple[str, ...], listing: Listing, problems: Problems) -> None:
    try:
        real = os.path.realpath(folder, strict=True)
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except PermissionError as error:
        problems.add(folder, "permission", error.strerror or "")
        return
    except OSError as error:
        problems.add(folder, "unreadable-folder", str(error.strerror))
        return
    if real in parents:
        problems.add(folder, "symlink-loop", "links to a folder that contains it")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself; the file is reported when it is opened
            is_folder = False
        if is_folder:
            _walk(path, (*parents, real), listing, problems)
        else:
            _sort_file(path, listing)


def _sort_file(path: Path, listing: Listing) -> None:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        listing.videos.append(path)
    elif suffix in IMAGE_SUFFIXES:
        listing.images.append(path)
    else:
        listing.others += 1
        listing.tables += suffix in TABLE_SUFFIXES


def holds_videos(path: Path) -> bool:
    """Whether `path` is a video file, or a folder with one somewhere below it."""
    files = [path.name] if path.is_file() else (name for _, _, names in os.walk(path) for name in names)
    return any(Path(name).suffix.lower() in VIDEO_SUFFIXES for name in files)


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sort so that frame_2 comes before frame_10."""
    return sorted(paths, key=lambda p: [int(w) if w.isdecimal() else w for w in re.split(r"(\d+)", p.name)])


def label_and_caption(root: Path, path: Path) -> tuple[str | None, tuple[str, ...]]:
    """The class of a file by its first folder below `root`, and that name in words; None at the top."""
    parts = path.relative_to(root).parts
    if len(parts) < 2:
        return None, ()
    return parts[0], (words_of(parts[0]),)


def words_of(name: str) -> str:
    """A class name as a prompt: `ApplyEyeMakeup` and `apply_eye-makeup` give "apply eye makeup"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\-\s]+", " ", name)
    return " ".join(spaced.split()).lower()
