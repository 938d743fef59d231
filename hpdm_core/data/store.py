"""Reading a prepared store: the clips it holds, and boxes of their pixels.

A store is opened cheaply (two JSON files), pickles as its path, and maps its shards when they are first read, in
the process that reads them.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.data.codecs import Codec, FrameReader, Size, data_file, open_frames, remedy_for, size_name
from hpdm_core.data.sources.walk import holds_videos
from hpdm_core.data.window import Window
from hpdm_core.errors import DataError, StoreMismatch

SCHEMA = 1
STORE_FILE = "store.json"
PLAN = "plan.json"
INDEX = "index.jsonl"
QUARANTINE = "quarantine.jsonl"
MAX_OPEN_FILES = 256

# What, besides the index with its checksums, makes two stores the same data.
_IDENTITY = ("schema", "codec", "sizes", "resize", "classes")


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """One clip of a store.

    `id` is its path relative to the source. `fps` is an average where the rate varies, None where unknown. `label`
    indexes the store's classes. `width, height` are the source's pixels; `sha256` is of the source file.
    `crc32` is of the stored bytes, per frame size.
    """

    index: int
    id: str
    shard: int
    first_frame: int
    num_frames: int
    fps: float | None
    label: int | None
    captions: tuple[str, ...]
    group: str
    width: int
    height: int
    sha256: str
    decoder: str
    notes: tuple[str, ...]
    crc32: tuple[int, ...]

    @property
    def source(self) -> str:
        """The path of the source file or folder, relative to the source given to `prepare-data`."""
        return self.id


class VideoStore:
    """A prepared store. Make one with `VideoStore.open`.

    clips, sizes (H, W; finest first), classes, codec, fingerprint: as the store says. `about` is `store.json`.
    """

    def __init__(self, path: Path, about: dict[str, Any], clips: tuple[ClipInfo, ...]) -> None:
        self.path = path
        self.about = about
        self.clips = clips
        self.sizes: tuple[Size, ...] = tuple((int(h), int(w)) for h, w in about["sizes"])
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.codec: Codec = about["codec"]
        self.fingerprint: str = about["fingerprint"]
        self._readers: OrderedDict[tuple[int, Size], FrameReader] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> VideoStore:
        """Open the store at `path`. Raises DataError if there is none, or it is unfinished, damaged or too new."""
        path = Path(path)
        try:
            about = _read_about(path)
            clips = tuple(_read_index(path))
            text = (path / INDEX).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}", hint="check its permissions and the disk") from error
        except UnicodeDecodeError as error:
            raise _damaged(path / INDEX, str(error)) from error
        if len(clips) != about["num_clips"] or store_fingerprint(about, text) != about["fingerprint"]:
            raise _damaged(path / INDEX, "it does not match store.json")
        return cls(path, about, clips)

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoStore, (self.path, self.about, self.clips)

    @property
    def fps(self) -> float | None:
        """Frames per second of most clips; None where no clip says it."""
        known = Counter(info.fps for info in self.clips if info.fps)
        return known.most_common(1)[0][0] if known else None

    def __len__(self) -> int:
        return len(self.clips)

    def require_sizes(self, sizes: Iterable[Size]) -> None:
        """Raise StoreMismatch, with the command that helps, unless the store holds frames of all `sizes`."""
        wanted = sorted({(int(h), int(w)) for h, w in sizes}, reverse=True)
        absent = [size for size in wanted if size not in self.sizes]
        if absent:
            held = ", ".join(map(size_name, self.sizes))
            raise StoreMismatch(
                f"{self.path} has no frames of {', '.join(map(size_name, absent))}; it holds {held}",
                hint=f"prepare one that has: {self._command_for(wanted[0])}",
            )

    @property
    def command(self) -> str:
        """The command line that makes the same store at its place, as far as it is known."""
        return f"{self.about.get('command') or 'hpdm prepare-data SRC'} --out {shlex.quote(str(self.path))}"

    def _command_for(self, size: Size) -> str:
        """The command line of a store of the same clips with frames of `size` and all smaller ones."""
        out = self.path.with_name(f"{self.path.name}-{size_name(size)}")
        words = shlex.split(self.command)
        for option in ("--size", "--levels", "--codec", "--out"):
            if option in words:
                del words[(at := words.index(option)) : at + 2]
        return shlex.join([*words, "--size", size_name(size), "--codec", self.codec, "--out", str(out)])

    def read(self, clip: int, window: Window) -> np.ndarray:
        """The pixels of a window of clip number `clip`: uint8 `[T, height, width, 3]`.

        Raises StoreMismatch for a frame size the store lacks, ValueError for a window that leaves the clip.
        """
        info = self.clips[clip]
        inside = window.stride > 0 and window.start >= 0 and window.last_frame < info.num_frames
        inside &= 0 <= window.top <= window.size[0] - window.height
        inside &= 0 <= window.left <= window.size[1] - window.width
        if not inside:
            raise ValueError(f"{window} is not inside clip {info.id} of {info.num_frames} frames")
        first = info.first_frame
        frames = range(first + window.start, first + window.last_frame + 1, window.stride)
        reader = self._reader(info.shard, window.size)
        return reader.read(frames, window.top, window.left, window.height, window.width)

    def read_frames(
        self, clip: int, size: Size | None = None, *, start: int = 0, num_frames: int | None = None, stride: int = 1
    ) -> np.ndarray:
        """Whole frames of clip number `clip`: uint8 `[T, H, W, 3]`; by default all of them, at the finest size."""
        size = size or self.sizes[0]
        if num_frames is None:
            num_frames = len(range(start, self.clips[clip].num_frames, stride))
        return self.read(clip, Window(size, start, stride, num_frames, 0, 0, *size))

    def stored_bytes(self, clip: int, size: Size) -> bytes:
        """The bytes of clip number `clip` at one frame size as they lie in the shard, for its checksum."""
        info = self.clips[clip]
        return self._reader(info.shard, size).stored_bytes(info.first_frame, info.num_frames)

    def _reader(self, shard: int, size: Size) -> FrameReader:
        key = (shard, size)
        if key in self._readers:
            self._readers.move_to_end(key)
            return self._readers[key]
        self.require_sizes([size])
        self._check_files(shard, size)
        folder, name = self.path / "shards", f"{shard:05d}"
        try:
            self._readers[key] = open_frames(folder, name, size, self.codec)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read: {error}", hint="check its permissions and the disk"
            ) from error
        except (ValueError, EOFError) as error:  # not the header that numpy expects
            file = folder / data_file(name, size, self.codec)
            raise DataError(f"{file} is damaged: {error}", hint=remedy_for(folder, name)) from error
        if len(self._readers) > MAX_OPEN_FILES:
            self._readers.popitem(last=False)
        return self._readers[key]

    def _check_files(self, shard: int, size: Size) -> None:
        for name, num_bytes in self.about["shards"][shard].items():
            if f"-{size_name(size)}." not in name:
                continue
            path = self.path / "shards" / name
            if not path.is_file():
                raise _damaged(path, "it is missing")
            if path.stat().st_size != num_bytes:
                raise _damaged(path, f"it has {path.stat().st_size} bytes instead of {num_bytes}")


def is_taken(path: Path) -> bool:
    """Whether something stands at `path`, where a new store needs nothing or an empty folder."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _prepare_line(source: Path | None, out: Path) -> str:
    return shlex.join(["hpdm", "prepare-data", str(source or "SRC"), "--out", str(out)])


def no_store(path: Path, line: Callable[[Path | None, Path], str] = _prepare_line) -> DataError:
    """Why there is no store to read at `path`, which lacks the file of a finished one.

    `line` is the command that makes one, of a source (None: the user is to say which) and the store's place.
    """
    if (path / PLAN).is_file():
        return DataError(
            f"the store {path} is not finished", hint="run the same hpdm prepare-data command again to finish it"
        )
    if not is_taken(path):
        return DataError(f"no store at {path}", hint=f"make one (SRC: a folder of videos): {line(None, path)}")
    named = path if path.name else path.resolve()  # `.` has no name
    out = path.parent / f"{named.stem if path.is_file() else named.name}-store"
    if holds_videos(path):
        return DataError(f"{path} is not a store", hint=f"make one of its videos: {line(path, out)}")
    return DataError(f"{path} is not a store", hint=f"name another folder, or make a store: {line(None, out)}")


def store_fingerprint(about: dict[str, Any], index: str) -> str:
    """A hash of what the store holds: frame sizes, codec, resize rule, classes, and every clip with its checksums."""
    identity = json.dumps({key: about[key] for key in _IDENTITY}, sort_keys=True)
    return hashlib.sha256(f"{identity}\n{index}".encode()).hexdigest()


def _read_about(path: Path) -> dict[str, Any]:
    file = path / STORE_FILE
    if not file.is_file():
        raise no_store(path)
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        schema = about["schema"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise _damaged(file, str(error)) from error
    if schema != SCHEMA:
        raise DataError(
            f"{path} has store schema {schema}; this version of hpdm reads schema {SCHEMA}",
            hint=f"use the version that made it ({about.get('made_by')}), or prepare it again",
        )
    missing = [key for key in (*_IDENTITY, "fingerprint", "num_clips", "shards") if key not in about]
    if missing:
        raise _damaged(file, f"no {', '.join(missing)}")
    return about


def _read_index(path: Path) -> Iterator[ClipInfo]:
    file = path / INDEX
    if not file.is_file():
        raise _damaged(file, "it is missing")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                raw = json.loads(line)
                raw.update({key: tuple(raw[key]) for key in ("captions", "notes", "crc32")})
                yield ClipInfo(index=number, **raw)
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise _damaged(file, f"line {number + 1}: {error}") from error


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged: {what}", hint="run the prepare-data command that made it again")
