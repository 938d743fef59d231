"""What every source yields, and the options that they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from hpdm_core.data.synthetic import Style
from hpdm_core.errors import ConfigError
from hpdm_core.rng import derive_seed

SourceKind = Literal["auto", "ucf101", "folder", "frames", "csv", "jsonl", "synthetic"]
Split = Literal["train", "test", "all"]


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """A procedural clip: arguments of `synthetic.render_clip`, less the size."""

    seed: int
    index: int
    frames: int
    style: Style = "rich"
    frame_step: int = 1


@dataclass(frozen=True, slots=True)
class SourceClip:
    """One clip to prepare.

    `id` is unique in its source and never absolute. `paths` is one video file, or the image files of the clip in
    order, or empty for a procedural clip. `group` names what must not be divided between training and
    test (one original video). `fps` is known beforehand only where no container will say it.
    """

    id: str
    paths: tuple[Path, ...]
    label: str | None = None
    captions: tuple[str, ...] = ()
    group: str = ""
    is_images: bool = False
    synthetic: SyntheticSpec | None = None
    fps: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A clip that cannot be used: `path` as the user knows it, `reason` a short word for counting."""

    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Scan:
    """What a source found. `classes` are all its label names, before any split, so that train and test agree."""

    kind: str
    clips: tuple[SourceClip, ...]
    classes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


READ: dict[str, tuple[str, ...]] = {
    "ucf101": ("path", "split_index", "lists"),
    "folder": ("path",),
    "frames": ("path", "fps"),
    "csv": ("path", "fps", "path_column", "caption_column", "label_column"),
    "jsonl": ("path", "fps", "path_column", "caption_column", "label_column"),
    "synthetic": ("num_clips", "num_frames", "seed", "style", "frame_step"),
}
"""The fields of `SourceOptions` that each kind of source reads, besides the split and its fraction."""


@dataclass(frozen=True)
class SourceOptions:
    """Everything that says which clips to take. `unread` names the fields that a kind of source has no use for.

    `lists` holds UCF-101's official split files; `test_fraction` splits any source by group instead.
    """

    kind: SourceKind = "auto"
    path: Path | None = None
    split: Split = "all"
    split_index: int = 1
    lists: Path | None = None
    test_fraction: float = 0.0
    path_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    fps: float | None = None
    num_clips: int = 100
    num_frames: int = 24
    seed: int = 0
    style: Style = "rich"
    frame_step: int = 1

    def unread(self, kind: str) -> list[str]:
        """The fields that differ from their defaults, though a source of this kind does not read them."""
        default = SourceOptions()
        read = {"kind", "split", "test_fraction", *READ[kind]}
        return [
            f.name for f in fields(self) if f.name not in read and getattr(self, f.name) != getattr(default, f.name)
        ]

    def folder(self) -> Path:
        """The source directory; ConfigError where there is none."""
        if self.path is None:
            raise ConfigError("no source given", hint="name a folder or table of videos, or use --source synthetic")
        if not self.path.exists():
            raise ConfigError(f"{self.path} does not exist", hint="check the path of the source")
        return self.path


def class_names(labels: Sequence[str | None]) -> tuple[str, ...]:
    """The distinct labels in order; labels that are all integers are ordered as numbers."""
    distinct = {label for label in labels if label is not None}
    if all(label.isdecimal() for label in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def split_by_group(scan: Scan, split: Split, test_fraction: float) -> Scan:
    """Keep the training or test part of a scan. Groups stay whole; each class gives about `test_fraction` of its clips.

    Groups are taken in an order that is a hash of their names; a class never gives all its groups to the test part.
    """
    if split == "all":
        return scan
    if not 0 < test_fraction < 1:
        raise ConfigError(
            f"--split {split} needs to know how this source is divided",
            hint="give --test-fraction 0.1 (by group), or --lists DIR with UCF-101's official lists",
        )
    test = _test_groups(scan.clips, test_fraction)
    kept = tuple(c for c in scan.clips if ((c.label, c.group) in test) == (split == "test"))
    note = f"{split} part of a {test_fraction:g} test split by group: {len(kept)} of {len(scan.clips)} clips"
    return replace(scan, clips=kept, notes=(*scan.notes, note))


def _test_groups(clips: Sequence[SourceClip], test_fraction: float) -> set[tuple[str | None, str]]:
    """The (class, group) pairs of the test part."""
    sizes = Counter((clip.label, clip.group) for clip in clips)
    chosen = set()
    for label in {label for label, _ in sizes}:
        groups = sorted((key for key in sizes if key[0] == label), key=lambda key: derive_seed(0, f"split/{key[1]}"))
        wanted, taken = test_fraction * sum(sizes[key] for key in groups), 0
        for key in groups[:-1]:
            if taken + sizes[key] / 2 <= wanted:
                chosen.add(key)
                taken += sizes[key]
    return chosen


@dataclass
class Problems:
    """Collects problems met while listing."""

    root: Path
    found: list[Problem] = field(default_factory=list)

    def add(self, path: Path, reason: str, detail: str = "") -> None:
        """Record `path`, relative to the root where it lies inside."""
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        self.found.append(Problem(name, reason, detail))
