"""What a report is about, read from disk: runs, folders of samples, real clips.

Shapes: T frames, H W pixels; uint8, 0..255.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.config.schema import RunConfig
from hpdm_core.data.decode import decode_video
from hpdm_core.data.store import VideoStore
from hpdm_core.data.write import read_metadata
from hpdm_core.errors import ConfigError, DataError
from hpdm_core.families.registry import load_run_config
from hpdm_core.metrics.results import NamedResult, read_result
from hpdm_core.metrics.sources import open_source
from hpdm_core.training.hooks import LOG_FILE, SAMPLES
from hpdm_core.training.run import CONFIG_FILE
from hpdm_core.training.samples import FPS, MAX_COLUMNS
from hpdm_core.training.source import find_store, noted_store

logger = logging.getLogger(__name__)

GRID_GAP = 2
MAX_CLIPS = 24


@dataclass(frozen=True)
class ShownClip:
    """One video uint8 [T, H, W, 3] with what is to be said of it. joins: where clips of a longer video begin."""

    video: np.ndarray
    caption: str
    fps: float = FPS
    label: str = ""
    joins: tuple[int, ...] = ()


@dataclass(frozen=True)
class SampleGrid:
    """What a run made after `step` steps: all its clips in one moving picture, and each alone."""

    step: int
    grid: np.ndarray
    clips: tuple[ShownClip, ...]


@dataclass(frozen=True)
class Subject:
    """A run or a folder of samples. A run has a log or a config; both may have clips and results."""

    path: Path
    is_run: bool
    config: RunConfig | None = None
    config_text: str = ""
    log: tuple[dict[str, Any], ...] = ()
    grids: tuple[SampleGrid, ...] = ()
    clips: tuple[ShownClip, ...] = ()
    results: tuple[NamedResult, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    title: str = ""

    @property
    def name(self) -> str:
        """What a report calls it: its title, or its folder's name."""
        return self.title or self.path.resolve().name


def titled(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects with titles that tell them apart: the folder's name, with as many parents as that takes."""
    paths = [subject.path.resolve().parts for subject in subjects]
    titles = []
    for subject, own in zip(subjects, paths, strict=True):
        others = [parts for parts in paths if parts != own]
        depth = next(n for n in range(1, len(own) + 1) if n == len(own) or all(own[-n:] != p[-n:] for p in others))
        titles.append(replace(subject, title="/".join(own[-depth:])))
    return titles


def read_subject(path: Path) -> Subject:
    """The run or the folder of samples at `path`. Raises DataError where there is neither."""
    if not path.exists():
        raise DataError(f"{path} does not exist", hint="name a run directory or a folder of samples")
    if (path / LOG_FILE).is_file() or (path / CONFIG_FILE).is_file():
        return _read_run(path)
    return Subject(path, is_run=False, clips=tuple(_read_clips(path)), results=_read_results(path))


def _read_run(run: Path) -> Subject:
    text, config = "", None
    if (run / CONFIG_FILE).is_file():
        text = (run / CONFIG_FILE).read_text(encoding="utf-8")
        try:
            config = load_run_config(run / CONFIG_FILE)
        except ConfigError as error:  # another version's: its text is still worth showing
            logger.warning("%s: %s", run / CONFIG_FILE, error)
    grids = tuple(_read_grids(run))
    clips = grids[-1].clips if grids else ()
    return Subject(run, True, config, text, tuple(read_log(run)), grids, clips, _read_results(run))


def read_log(run: Path) -> Iterator[dict[str, Any]]:
    """The step lines of a run's log; an unfinished last line is left out."""
    path = run / LOG_FILE
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # being written right now, or cut off
            continue
        if isinstance(entry, dict) and "step" in entry and "loss" in entry:
            yield entry


def _read_grids(run: Path) -> Iterator[SampleGrid]:
    """What training has sampled, oldest first."""
    for path in sorted((run / SAMPLES).glob("step_*/grid.mp4")):
        grid, _ = decode_video(path)
        about = read_metadata(path)
        seeds = about.get("seeds", [])
        classes = about.get("classes") or [""] * len(seeds)
        captions = [f"{name or 'sample'} · seed {seed}" for seed, name in zip(seeds, classes, strict=False)]
        videos = split_grid(grid, len(seeds))
        clips = tuple(ShownClip(v, c, FPS, n) for v, c, n in zip(videos, captions, classes, strict=False))
        yield SampleGrid(int(path.parent.name.removeprefix("step_")), grid[:, :-GRID_GAP, :-GRID_GAP], clips)


def split_grid(grid_THWC: np.ndarray, num: int) -> list[np.ndarray]:
    """The single videos of a grid that training wrote: the inverse of `write.tile_videos`."""
    if num == 0:
        return []
    columns = min(num, MAX_COLUMNS)
    rows = -(-num // columns)
    height, width = grid_THWC.shape[1] // rows, grid_THWC.shape[2] // columns
    return [
        grid_THWC[:, r * height : (r + 1) * height - GRID_GAP, c * width : (c + 1) * width - GRID_GAP]
        for r, c in (divmod(i, columns) for i in range(num))
    ]


def _read_clips(folder: Path) -> Iterator[ShownClip]:
    """The first clips of a folder of samples, by name."""
    source = open_source(folder)
    shown = range(min(len(source), MAX_CLIPS))
    for clip in source.clips(shown, lambda _, length: range(length), None, workers=0):  # few: no threads beside us
        if clip.frames is not None:
            about, fps = _provenance(folder / clip.name.partition(":")[0])
            label = str(about.get("class") or "")
            told = label or about.get("prompt") or "sample"
            caption = f"{told} · seed {about['seed']}" if "seed" in about else clip.name
            joins = tuple(int(j) for j in about.get("joins", ()) if 0 < int(j) < len(clip.frames))
            yield ShownClip(clip.frames, caption, fps, label, joins)


def _provenance(file: Path) -> tuple[dict[str, Any], float]:
    """The metadata and frame rate of a sample, as far as its file knows them."""
    suffix = file.suffix.lower()
    if suffix not in (".npz", ".gif", ".mp4") or not file.is_file():
        return {}, FPS
    fps = FPS
    if suffix == ".npz":
        with np.load(file, allow_pickle=False) as archive:
            fps = float(archive["fps"]) if "fps" in archive else FPS
    return read_metadata(file), fps


def _read_results(folder: Path) -> tuple[NamedResult, ...]:
    """Every evaluation result in a folder and its `scores/`; other JSON files are none of our business."""
    found = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("scores/**/*.json")]):
        try:
            found.append(read_result(path))
        except ConfigError as error:
            logger.debug("%s", error)
    return tuple(found)


def real_store(store: Path | None, subjects: Sequence[Subject]) -> VideoStore | None:
    """The store given, else the one that a run was trained on or that its config finds; None where there is none."""
    if store is not None:
        return VideoStore.open(store)
    for subject in subjects:
        if subject.is_run and (noted := noted_store(subject.path)) is not None:
            return noted
        if subject.config is not None:
            try:
                return VideoStore.open(find_store(subject.config, None))
            except DataError as error:
                logger.debug("%s", error)
    return None


def real_like(store: VideoStore, clips: Sequence[ShownClip]) -> list[ShownClip]:
    """A real clip for each of `clips`: of its class where the store knows that, of its size and length if it can be."""
    taken: dict[str, int] = {}
    found = []
    for clip in clips:
        pool = _of_class(store, clip.label)
        turn = taken.get(clip.label, 0)
        taken[clip.label] = turn + 1
        index = pool[turn % len(pool)]
        frames, height, width = clip.video.shape[:3]
        size = (height, width) if (height, width) in store.sizes else None
        info = store.clips[index]
        video = store.read_frames(index, size, num_frames=min(frames, info.num_frames))
        label = "" if info.label is None else store.classes[info.label]
        found.append(ShownClip(video, info.captions[0] if info.captions else label or info.id, clip.fps, label))
    return found


def _of_class(store: VideoStore, name: str) -> list[int]:
    """Clip numbers of a class; of the whole store if it has none such."""
    number = store.classes.index(name) if name in store.classes else None
    return [info.index for info in store.clips if number is not None and info.label == number] or list(
        range(len(store))
    )
