"""Building one shard: data files that grow clip by clip, then a record that marks the shard finished.

Layout of a store:

    store.json            what it is; written last, so that a store that opens is complete
    plan.json             what is being prepared; guards against continuing with other settings
    index.jsonl           one line per clip
    quarantine.jsonl      one line per clip that could not be used
    shards/00000.json     record of a finished shard: its clips, its quarantine, the sizes of its and its sources' files
    shards/00000-128x128.npy
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.data.clip import ClipJob, ClipResult, Recipe
from hpdm_core.data.codecs import data_file, file_header, offsets_file
from hpdm_core.data.disk import naming, replacing
from hpdm_core.data.sources.base import Problem, SourceClip
from hpdm_core.errors import DataError

SHARDS = "shards"
CLIPS_PER_SHARD = 16

Record = dict[str, Any]


def shard_name(number: int) -> str:
    """`00007`; shards are numbered in the order of the plan."""
    return f"{number:05d}"


def read_shard_record(store: Path, number: int) -> Record | None:
    """The record of a finished shard; None where there is none, or where it was cut short. Raises DataError."""
    path = store / SHARDS / f"{shard_name(number)}.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # the shard is as good as unfinished
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def has_its_files(store: Path, record: Record) -> bool:
    """Whether the data files of a finished shard are there, each as long as its record says."""
    try:
        return all((store / SHARDS / name).stat().st_size == size for name, size in record["files"].items())
    except FileNotFoundError:
        return False


def read_json(path: Path) -> Record:
    """A JSON object that this package wrote. Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {error}", hint="delete the store and run hpdm prepare-data again")


def source_bytes(clip: SourceClip) -> int | None:
    """The size of the clip's files together; None where one cannot be seen."""
    try:
        return sum(path.stat().st_size for path in clip.paths)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write JSON so that a reader sees all of it or the old file."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically and durably. Raises OSError naming `path`."""
    partial = path.with_name(path.name + ".tmp")
    with replacing(path, partial), partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_text_once(path: Path, text: str) -> None:
    """Write text like `write_text`, unless the file is there: of several writers the first one wins."""
    partial = path.with_name(f"{path.name}.{_token()}.tmp")
    with naming(path):
        write_text(partial, text)
        try:
            os.link(partial, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _token() -> str:
    """A name that no other writer has."""
    return uuid.uuid4().hex[:12]


class ShardBuilder:
    """One unfinished shard. Starting it discards what an interrupted run left of it.

    Its files have names of their own until it is finished: a decoder that outlived its parent and still writes
    to an earlier attempt does no harm.
    """

    def __init__(self, store: Path, number: int, recipe: Recipe) -> None:
        self._folder = store / SHARDS
        self._name = shard_name(number)
        self._number = number
        self._recipe = recipe
        for leftover in self._folder.glob(f"{self._name}-*.tmp"):
            leftover.unlink()
        token = _token()
        self._partial = [self._folder / f"{name}.{token}.tmp" for name in self._data_names()]
        self._offsets = []
        for path, size in zip(self._partial, recipe.sizes, strict=True):
            header = file_header(0, size, recipe.codec)
            path.write_bytes(header)
            self._offsets.append(len(header))
        self._frame_bytes: list[list[int]] = [[] for _ in recipe.sizes]
        self._clips: list[Record] = []
        self._problems: list[Record] = []
        self._source_bytes: dict[str, int | None] = {}
        self._num_frames = 0

    def _data_names(self) -> list[str]:
        return [data_file(self._name, size, self._recipe.codec) for size in self._recipe.sizes]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Clips kept, clips refused, frames kept."""
        return len(self._clips), len(self._problems), self._num_frames

    def job(self, clip: SourceClip) -> ClipJob:
        """The job that appends `clip` behind the clips added so far."""
        return ClipJob(clip, self._recipe, tuple(self._partial), tuple(self._offsets))

    def add(self, clip: SourceClip, result: ClipResult, label: int | None) -> None:
        """Take a clip that its job has written."""
        self._source_bytes[clip.id] = source_bytes(clip)
        self._clips.append(
            {
                "id": clip.id,
                "shard": self._number,
                "first_frame": self._num_frames,
                "num_frames": result.num_frames,
                "fps": result.fps,
                "label": label,
                "captions": list(result.captions),
                "group": clip.group,
                "width": result.width,
                "height": result.height,
                "sha256": result.sha256,
                "decoder": result.decoder,
                "notes": list(result.notes),
                "crc32": list(result.crc32),
            }
        )
        self._num_frames += result.num_frames
        for i, lengths in enumerate(result.frame_bytes):
            self._offsets[i] += sum(lengths)
            self._frame_bytes[i].extend(lengths)

    def refuse(self, clip: SourceClip, problem: Problem) -> None:
        """Note a clip that could not be prepared; what its job wrote is overwritten."""
        self._source_bytes[clip.id] = source_bytes(clip)
        self._problems.append({"path": problem.path, "reason": problem.reason, "detail": problem.detail})

    def finish(self) -> Record:
        """Complete the files, move them in place, and write the record that marks the shard finished."""
        sizes: dict[str, int] = {}
        for i, (path, name) in enumerate(zip(self._partial, self._data_names(), strict=True)):
            size = self._recipe.sizes[i]
            with path.open("r+b") as file:
                file.truncate(self._offsets[i])
                file.write(file_header(self._num_frames, size, self._recipe.codec))
                file.flush()
                os.fsync(file.fileno())
            final = self._folder / name
            path.replace(final)
            sizes[name] = final.stat().st_size
            if self._recipe.codec == "jpeg":
                offsets = self._folder / offsets_file(self._name, size)
                np.save(offsets, np.cumsum([0, *self._frame_bytes[i]], dtype=np.int64))
                sizes[offsets.name] = offsets.stat().st_size
        record = {
            "clips": self._clips,
            "quarantine": self._problems,
            "source_bytes": self._source_bytes,
            "files": sizes,
        }
        write_json(self._folder / f"{self._name}.json", record)
        return record
