"""Sources that are directory trees: videos in folders, UCF-101, and folders of frames."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from hpdm_core.data.sources.base import Problems, Scan, SourceClip, SourceOptions, class_names, split_by_group
from hpdm_core.data.sources.walk import Listing, label_and_caption, list_files, natural_order
from hpdm_core.errors import ConfigError, DataError

UCF_NAME = re.compile(r"v_(?P<cls>[A-Za-z0-9]+)_g(?P<group>\d+)_c\d+", re.ASCII)


def scan_folder(options: SourceOptions) -> Scan:
    """Video files below a folder; the first sub-folder is the class, files at the top have none."""
    root = options.folder()
    problems = Problems(root)
    if root.is_file():
        return Scan("folder", (SourceClip(root.name, (root,), group=root.name),))
    listing = list_files(root, problems)
    clips = []
    for path in listing.videos:
        label, captions = label_and_caption(root, path)
        name = path.relative_to(root).as_posix()
        clips.append(SourceClip(name, (path,), label, captions, group=name))
    scan = _scan("folder", clips, problems, listing)
    return split_by_group(scan, options.split, options.test_fraction)


def scan_ucf101(options: SourceOptions) -> Scan:
    """UCF-101's layout, `<Class>/v_<Class>_gNN_cMM.avi`, with its official train/test lists where given."""
    root = options.folder()
    problems = Problems(root)
    listing = list_files(root, problems)
    clips = []
    for path in listing.videos:
        name = path.relative_to(root).as_posix()
        label, captions = label_and_caption(root, path)
        match = UCF_NAME.match(path.name)
        group = f"{label or match['cls']}_g{match['group']}" if match else name
        clips.append(SourceClip(name, (path,), label, captions, group=group))
    scan = _scan("ucf101", clips, problems, listing)
    lists = options.lists or _find_lists(root)
    if options.split != "all" and lists is not None and not options.test_fraction:
        return _split_by_list(scan, options, lists)
    return split_by_group(scan, options.split, options.test_fraction)


def scan_frames(options: SourceOptions) -> Scan:
    """One folder of images per clip, frames in natural order; an image beside folders is a one-frame clip.

    Above the clip folders there may be class folders. Images at the top of the source, or in a class folder that
    also holds clip folders, are clips of their own; a source that is one folder of images is one clip.
    """
    root = options.folder()
    problems = Problems(root)
    if root.is_file():
        return Scan("frames", (SourceClip(root.name, (root,), group=root.name, is_images=True),))
    listing = list_files(root, problems)
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for image in listing.images:
        by_folder[image.parent].append(image)
    clips = []
    for folder, images in sorted(by_folder.items()):
        single = any(folder in other.parents for other in by_folder)
        groups = [[image] for image in images] if single else [natural_order(images)]
        for group in groups:
            path = group[0] if single else folder
            label, captions = label_and_caption(root, path) if path != root else (None, ())
            name = path.relative_to(root).as_posix() if path != root else root.name
            clips.append(SourceClip(name, tuple(group), label, captions, group=name, is_images=True, fps=options.fps))
    scan = _scan("frames", clips, problems, listing)
    return split_by_group(scan, options.split, options.test_fraction)


def _scan(kind: str, clips: list[SourceClip], problems: Problems, listing: Listing) -> Scan:
    ignored = listing.others + len(listing.videos if kind == "frames" else listing.images)
    notes = (f"ignored {ignored} files of other kinds",) if ignored else ()
    classes = class_names([clip.label for clip in clips])
    return Scan(kind, tuple(clips), classes, tuple(problems.found), notes)


def _find_lists(root: Path) -> Path | None:
    """A folder of official lists in the usual places beside the class folders."""
    names = (".", "ucfTrainTestlist", "ucf101_lists", "splits")
    for folder in (base / name for base in (root, root.parent) for name in names):
        if (folder / "trainlist01.txt").is_file():
            return folder
    return None


def _split_by_list(scan: Scan, options: SourceOptions, lists: Path) -> Scan:
    file = lists / f"{options.split}list{options.split_index:02d}.txt"
    if not file.is_file():
        raise ConfigError(
            f"no split file {file}", hint="--lists names the folder with trainlist01.txt … testlist03.txt"
        )
    try:
        listed = {line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="get the official lists again") from error
    kept = tuple(clip for clip in scan.clips if clip.id in listed)
    if not kept:
        raise DataError(
            f"none of the {len(scan.clips)} clips found is named in {file}",
            hint="file names must be the official ones; --split all takes every file",
        )
    note = (
        f"{file.name} names {len(listed)} clips: {len(kept)} found, {len(listed) - len(kept)} missing, "
        f"{len(scan.clips) - len(kept)} found files are not in it"
    )
    return replace(scan, clips=kept, notes=(*scan.notes, note))
