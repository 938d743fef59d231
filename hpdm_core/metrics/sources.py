"""Where the clips of an evaluation come from: stores, folders of videos or of frames, arrays, a generator.

A source knows its videos by number, in sorted order, and gives the frames that a rule chooses once the length is known.
Everything is uint8: a float array would leave its range to guesswork, the commonest way to a plausible wrong FVD.

Shapes: N videos, T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import threading
import zipfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from hpdm_core.data.backends import CHILD_ENVIRONMENT
from hpdm_core.data.decode import decode_video
from hpdm_core.data.isolate import ChildDied, DeadlineExceeded, IsolatedWorker
from hpdm_core.data.sources.base import SourceClip, SourceOptions
from hpdm_core.data.sources.folders import scan_folder, scan_frames
from hpdm_core.data.sources.walk import natural_order
from hpdm_core.data.store import STORE_FILE, VideoStore
from hpdm_core.errors import CorruptVideo, DataError
from hpdm_core.metrics.array_files import array_shapes, load_array

Choose = Callable[[int, int], range | None]
"""(video number, its frame count) to the frames to read, or None where the video is too short."""

LOSSY_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".webm", ".gif", ".jpg", ".jpeg"))
ARRAY_SUFFIXES = frozenset((".npz", ".npy"))
DECODE_DEADLINE = 120.0
"""Seconds that one video file may take."""


@dataclass(frozen=True)
class Clip:
    """The chosen frames of video number `index`: uint8 [T, H, W, 3]; None where the video was too short."""

    index: int
    name: str
    frames: np.ndarray | None
    video_frames: int


class VideoSource(ABC):
    """Videos by number. `kind` is a word for reports; `lossy` says that a codec has touched the frames.

    `concurrent`: reading only reads, so it may run beside a network. A source that computes may not: it would
    share the process-wide arithmetic settings (TF32) with that network.
    """

    kind: str
    lossy = False
    concurrent = True

    @abstractmethod
    def __len__(self) -> int:
        """How many videos there are."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A video's name within the source."""

    def caption(self, index: int) -> str:
        """What a video shows, in words; empty where nothing says so."""
        return ""

    def length(self, index: int) -> int | None:
        """A video's frames, None where only decoding would tell."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what the source holds, as far as that is known without decoding."""

    def identity(self) -> str:
        """What tells this source from any other on this machine: at least as strict as the fingerprint."""
        return self.fingerprint()

    @abstractmethod
    def clip(self, index: int, choose: Choose, size: tuple[int, int] | None) -> Clip:
        """The chosen frames of one video, of `size` where the source holds that size. Raises DataError."""

    def clips(
        self, order: Iterable[int], choose: Choose, size: tuple[int, int] | None, workers: int = 4
    ) -> Iterator[Clip]:
        """The clips of the videos in `order`, read ahead by `workers` threads; at most two each wait in memory."""
        if workers == 0:
            yield from (self.clip(index, choose, size) for index in order)
            return
        pending: deque[Future[Clip]] = deque()
        indices = iter(order)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for index in islice(indices, 2 * workers):
                    pending.append(pool.submit(self.clip, index, choose, size))
                while pending:
                    yield pending.popleft().result()
                    for index in islice(indices, 1):
                        pending.append(pool.submit(self.clip, index, choose, size))
            finally:
                for future in pending:
                    future.cancel()


class StoreSource(VideoSource):
    """A prepared store. Only the bytes of the chosen frames are read."""

    kind = "store"

    def __init__(self, path: Path) -> None:
        self.store = VideoStore.open(path)
        self.lossy = self.store.codec != "raw"
        self._local = threading.local()

    def __len__(self) -> int:
        return len(self.store)

    def name(self, index: int) -> str:
        """The clip's path in the source it was prepared from."""
        return self.store.clips[index].id

    def caption(self, index: int) -> str:
        """The clip's first caption."""
        return next(iter(self.store.clips[index].captions), "")

    def length(self, index: int) -> int:
        """From the store's index."""
        return self.store.clips[index].num_frames

    def fingerprint(self) -> str:
        """The store's own."""
        return self.store.fingerprint

    def clip(self, index: int, choose: Choose, size: tuple[int, int] | None) -> Clip:
        """Frames at `size` if the store holds that level, else at its finest."""
        store = self._own_store()
        length = store.clips[index].num_frames
        chosen = choose(index, length)
        if chosen is None:
            return Clip(index, self.name(index), None, length)
        level = size if size in store.sizes else None
        frames = store.read_frames(index, level, start=chosen.start, num_frames=len(chosen), stride=chosen.step)
        return Clip(index, self.name(index), frames, length)

    def _own_store(self) -> VideoStore:
        """This thread's reader: a store keeps a cache of open shards that threads must not share."""
        if not hasattr(self._local, "store"):
            self._local.store = VideoStore(self.store.path, self.store.about, self.store.clips)
        return self._local.store


class FolderSource(VideoSource):
    """A folder of video files, or of folders of frames."""

    def __init__(self, root: Path, clips: tuple[SourceClip, ...], kind: str) -> None:
        self.root, self.found, self.kind = root, clips, kind
        self._local = threading.local()
        self.lossy = any(clip.paths[0].suffix.lower() in LOSSY_SUFFIXES for clip in clips)

    def __len__(self) -> int:
        return len(self.found)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return self.found[index].id

    def fingerprint(self) -> str:
        """Names and sizes in bytes of all files: the same for a copy elsewhere."""
        digest = hashlib.sha256()
        for clip in self.found:
            for path in clip.paths:
                digest.update(f"{clip.id}/{path.name} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def identity(self) -> str:
        """The fingerprint with the folder's place and the files' times: new frames often have the old sizes."""
        digest = hashlib.sha256(f"{self.fingerprint()} {self.root.resolve()}\n".encode())
        for clip in self.found:
            for path in clip.paths:
                digest.update(f"{path.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def length(self, index: int) -> int | None:
        """The number of image files; None for a video file."""
        found = self.found[index]
        return len(found.paths) if found.is_images else None

    def clip(self, index: int, choose: Choose, size: tuple[int, int] | None) -> Clip:
        """Frames at the size of the file. A video is decoded from its beginning: seeking gives wrong frames."""
        found = self.found[index]
        if found.is_images:
            chosen = choose(index, len(found.paths))
            frames = None if chosen is None else _read_images([found.paths[i] for i in chosen])
            return Clip(index, found.id, frames, len(found.paths))
        video = self._decode(found.paths[0])
        chosen = choose(index, len(video))
        frames = None if chosen is None else video[chosen.start : chosen.stop : chosen.step]
        return Clip(index, found.id, frames, len(video))

    def _decode(self, path: Path) -> np.ndarray:
        """All frames, decoded in this thread's child process, so that no file can hang or crash an evaluation."""
        if not hasattr(self._local, "child"):
            self._local.child = IsolatedWorker(CHILD_ENVIRONMENT, decode_video.__module__)
        try:
            video, _ = self._local.child.call(decode_video, DECODE_DEADLINE, path)
        except (DeadlineExceeded, ChildDied) as error:
            raise CorruptVideo(f"{path} cannot be decoded: {error}", hint="remove the file, or repair it") from error
        return video


class ArraySource(VideoSource):
    """`.npy` and `.npz` files: one video [T, H, W, 3] or many [N, T, H, W, 3] each, uint8."""

    kind = "arrays"

    def __init__(self, root: Path, files: list[Path]) -> None:
        self.root = root
        self.videos: list[tuple[Path, str, int | None]] = []
        self._lengths: list[int] = []
        self._open: tuple[tuple[Path, str], np.ndarray] | None = None
        self._lock = threading.Lock()
        for path in files:
            for key, shape in array_shapes(path):
                rows = [None] if len(shape) == 4 else range(shape[0])
                self.videos += [(path, key, row) for row in rows]
                self._lengths += [shape[-4]] * len(rows)

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        """File name, with the row where a file holds many."""
        path, key, row = self.videos[index]
        return path.name + (f":{key}" if key else "") + ("" if row is None else f"[{row}]")

    def length(self, index: int) -> int:
        """From the array's shape."""
        return self._lengths[index]

    def fingerprint(self) -> str:
        """Hash of the files' bytes, or of the checksums that an archive holds of its members."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(path for path, _, _ in self.videos):
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    members = [(item.filename, item.file_size, item.CRC) for item in archive.infolist()]
                digest.update(repr(sorted(members)).encode())
            else:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def clip(self, index: int, choose: Choose, size: tuple[int, int] | None) -> Clip:
        """Frames at the size of the array."""
        path, key, row = self.videos[index]
        video = load_array(path, key) if row is None else self._array(path, key)[row]
        chosen = choose(index, len(video))
        frames = None if chosen is None else np.array(video[chosen.start : chosen.stop : chosen.step])
        return Clip(index, self.name(index), frames, len(video))

    def _array(self, path: Path, key: str) -> np.ndarray:
        """The array of a file that holds many videos: `.npy` mapped, `.npz` unpacked; the last one stays open."""
        with self._lock:
            if self._open is None or self._open[0] != (path, key):
                self._open = ((path, key), load_array(path, key))
            return self._open[1]


class GeneratedSource(VideoSource):
    """Videos that a generator yields one after the other, never touching the disk.

    make: the numbers of the videos wanted to each one's seed and frames uint8 [T, H, W, 3].
    """

    kind = "checkpoint"
    concurrent = False

    def __init__(
        self, make: Callable[[Sequence[int]], Iterable[tuple[int, np.ndarray]]], count: int, identity: str
    ) -> None:
        self._make, self._count, self._identity = make, count, identity

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """The video's number."""
        return f"generated video {index}"

    def fingerprint(self) -> str:
        """Of the checkpoint and the sampling options."""
        return self._identity

    def clip(self, index: int, choose: Choose, size: tuple[int, int] | None) -> Clip:
        """Not offered: generated videos come in order."""
        raise DataError("generated videos can only be read in order")

    def clips(
        self, order: Iterable[int], choose: Choose, size: tuple[int, int] | None, workers: int = 4
    ) -> Iterator[Clip]:
        """The videos that the generator makes for the numbers in `order`."""
        numbers = list(order)
        for index, (seed, video) in zip(numbers, self._make(numbers), strict=False):
            chosen = choose(index, len(video))
            frames = None if chosen is None else video[chosen.start : chosen.stop : chosen.step]
            yield Clip(index, f"seed {seed}", frames, len(video))


def open_source(path: Path) -> VideoSource:
    """The source at `path`: a store, `.npy`/`.npz`, a folder of arrays, of frame folders or of videos.

    Arrays come before anything else, since they are lossless; a folder of videos and of frame folders is what it
    has more of, and where it has as many of both, what no codec has touched, frames first. Raises DataError.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist", hint="give a store, a folder of videos or frames, or a .npz file")
    if path.is_file() and path.suffix in ARRAY_SUFFIXES:
        return ArraySource(path, [path])
    if (path / STORE_FILE).is_file():
        return StoreSource(path)
    if path.is_dir():
        arrays = [file for file in path.rglob("*") if file.suffix in ARRAY_SUFFIXES and file.is_file()]
        if arrays:
            return ArraySource(path, natural_order(arrays))
    options = SourceOptions(path=path)
    videos = scan_folder(options)
    frames = tuple(clip for clip in scan_frames(options).clips if len(clip.paths) > 1)
    if not frames and not videos.clips:
        raise DataError(
            f"no videos in {path}",
            hint="expected a store, video files, folders of frames, or .npz/.npy arrays of uint8 [N, T, H, W, 3]",
        )
    of_frames, of_videos = FolderSource(path, frames, "frames"), FolderSource(path, videos.clips, "videos")
    if len(frames) == len(videos.clips):
        return of_videos if of_frames.lossy and not of_videos.lossy else of_frames
    return of_frames if len(frames) > len(videos.clips) else of_videos


def _read_images(paths: list[Path]) -> np.ndarray:
    frames = []
    for path in paths:
        try:
            with Image.open(path) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path} is not a readable image: {error}") from error
        if frames[-1].shape != frames[0].shape:
            raise DataError(f"{path} is {_size(frames[-1])}, the first frame of its folder {_size(frames[0])}")
    return np.stack(frames)


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[-3]}x{frame.shape[-2]}"
