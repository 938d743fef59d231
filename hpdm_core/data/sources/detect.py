"""From options to a scan: pick the source by name, or by looking where that is obvious."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

from hpdm_core.data import synthetic
from hpdm_core.data.sources.base import Problems, Scan, SourceClip, SourceOptions, SyntheticSpec, split_by_group
from hpdm_core.data.sources.folders import UCF_NAME, scan_folder, scan_frames, scan_ucf101
from hpdm_core.data.sources.tables import scan_table
from hpdm_core.data.sources.walk import IMAGE_SUFFIXES, TABLE_SUFFIXES, VIDEO_SUFFIXES, list_files
from hpdm_core.errors import ConfigError, DataError


def scan_source(options: SourceOptions) -> Scan:
    """List the clips that `options` ask for; DataError where there are none."""
    kind = detect_kind(options) if options.kind == "auto" else options.kind
    if kind in ("csv", "jsonl") and options.folder().is_dir():
        raise ConfigError(f"{options.path} is a folder, not a {kind} table", hint="name the table file itself")
    scan = SCANNERS[kind](options)
    if not scan.clips and not scan.problems:
        what = {"frames": "images", "synthetic": "clips"}.get(kind, "videos")
        raise DataError(
            f"no {what} found in {options.path}",
            hint=f"--source {kind} looks for {', '.join(sorted(_suffixes(kind)))}" if _suffixes(kind) else "",
        )
    return scan


def detect_kind(options: SourceOptions) -> str:
    """The kind of source at `options.path`; ConfigError names what was seen where it is not obvious.

    DataError where there is nothing that could be one.
    """
    path = options.folder()
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in TABLE_SUFFIXES:
            return TABLE_SUFFIXES[suffix]
        if suffix in VIDEO_SUFFIXES:
            return "folder"
        if suffix in IMAGE_SUFFIXES:
            return "frames"
        raise ConfigError(f"cannot tell what {path} is", hint="say so with --source csv|jsonl|folder")
    return _detect_folder(path)


def _detect_folder(path: Path) -> str:
    listing = list_files(path, Problems(path))
    num_videos, num_images = len(listing.videos), len(listing.images)
    num_ucf = sum(1 for v in listing.videos if UCF_NAME.match(v.name) and v.parent != path)
    if num_ucf > num_videos / 2:
        return "ucf101"
    if num_videos and not num_images:
        return "folder"
    if num_images and not num_videos:
        return "frames"
    if not num_videos and not listing.tables:
        raise DataError(f"no videos, images or tables found in {path}", hint="name the folder or the table itself")
    raise ConfigError(
        f"cannot tell what kind of source {path} is: {num_videos} videos, {num_images} images, "
        f"{listing.others} other files",
        hint="say so with --source folder (videos) or --source frames (images)",
    )


def scan_synthetic(options: SourceOptions) -> Scan:
    """The first `num_clips` clips of the stream `seed` that the split takes; captions come with the pixels."""
    if options.frame_step < 1:
        raise ConfigError(f"a frame step of {options.frame_step} shows nothing", hint="--frame-step 1 or more")
    by_rule = options.style == "scenes"  # which pairs are held out is part of the style
    classes = synthetic.classes_of(options.style)
    indices = synthetic.scene_indices(options.seed, options.split) if by_rule else count()
    clips = tuple(_synthetic_clip(options, index, classes) for index in islice(indices, options.num_clips))
    if by_rule:
        note = {"train": "without the held-out pairs", "test": "held-out pairs alone", "all": "with the held-out pairs"}
        return Scan("synthetic", clips, classes, notes=(f"scenes {note[options.split]}",))
    if options.split != "all" and not options.test_fraction:
        raise ConfigError(
            f"clips of the style {options.style} are not divided into train and test",
            hint="leave --split away, give --test-fraction 0.1, or use --style scenes, which has held-out pairs",
        )
    return split_by_group(Scan("synthetic", clips, classes), options.split, options.test_fraction)


def _synthetic_clip(options: SourceOptions, index: int, classes: tuple[str, ...]) -> SourceClip:
    return SourceClip(
        id=f"synthetic/{options.seed}/{index:06d}",
        paths=(),
        label=classes[synthetic.label_of(options.seed, index, options.style)],
        group=f"{index:06d}",
        synthetic=SyntheticSpec(options.seed, index, options.num_frames, options.style, options.frame_step),
        fps=synthetic.FPS / options.frame_step,
    )


def _suffixes(kind: str) -> frozenset[str]:
    return {"folder": VIDEO_SUFFIXES, "ucf101": VIDEO_SUFFIXES, "frames": IMAGE_SUFFIXES}.get(kind, frozenset())


SCANNERS: dict[str, Callable[[SourceOptions], Scan]] = {
    "ucf101": scan_ucf101,
    "folder": scan_folder,
    "frames": scan_frames,
    "csv": scan_table,
    "jsonl": scan_table,
    "synthetic": scan_synthetic,
}
