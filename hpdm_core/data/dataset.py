"""Training batches from a store.

Workers read the bytes of the windows and nothing else; they hand over uint8, which `to_device` turns into the floats
that models take, on the device. What a batch holds depends on (seed, positions) alone, never on the number
of workers, ranks or restarts.

Shapes: B rows, C = 3 channels, T frames, H W pixels.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hpdm_core.config.schema import DataSection
from hpdm_core.data.order import StreamOrder, cut_clip, plan_clips
from hpdm_core.data.store import VideoStore
from hpdm_core.data.window import Batch, ClipView, Window
from hpdm_core.errors import ConfigError
from hpdm_core.rng import numpy_stream
from hpdm_core.video import to_float

Item = dict[str, Any]


class CaptionReader(Protocol):
    """What a model is given instead of a caption's text: arrays by name, of one shape for all captions."""

    def read(self, caption: str) -> dict[str, np.ndarray]:
        """The arrays of `caption`, which may be empty."""
        ...


def make_loader(
    store: VideoStore,
    view: ClipView,
    data: DataSection,
    *,
    seed: int,
    start_position: int = 0,
    batch_size: int,
    micro_batch: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    need_labels: bool = False,
    captions: CaptionReader | None = None,
) -> Iterator[Batch]:
    """Micro-batches of one rank, forever, from `start_position` of the stream on.

    Step s trains on positions `start_position + s * batch_size + j` for j < `batch_size` (global). Rank r takes
    those with `j % world_size == r`, in order, `micro_batch` rows at a time (None: all of the rank's rows at once), so
    `batch_size / world_size / micro_batch` micro-batches make one step. To resume, pass the position reached.

    The batches hold uint8 `[B, T, H, W, 3]` on the CPU; give each to `to_device` before a model sees it.
    Clips too short for the view are left out (`plan_clips`). Raises ConfigError for a batch that does not divide,
    StoreMismatch and DataError as `plan_clips` does, all before the first batch.
    """
    rows = _rows_per_rank(batch_size, world_size, micro_batch)
    repeat_images = data.images == "repeat"
    kept = plan_clips(store, view, data.frame_stride, need_labels=need_labels, repeat_images=repeat_images).kept
    dataset = StreamDataset(store, view, data, kept, seed, captions)
    sampler = _Positions(start_position, batch_size, rank, world_size, micro_batch or rows)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,  # type: ignore[arg-type]  # endless, so it has no length
        num_workers=data.workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=4 if data.workers else None,
        worker_init_fn=_settle_worker,
        generator=torch.Generator(),  # else DataLoader draws from the global one
    )
    # What an earlier phase or model left in reference cycles: a forked worker that came to collect it would free GPU
    # memory, which its process cannot, and die.
    gc.collect()
    return (Batch(**fields) for fields in loader)


def _settle_worker(worker: int) -> None:
    """Leave alone what the worker inherited, and move it out of reach of the signals that end a run cleanly.

    Signals often go to the whole process group (`timeout`, torchrun, Ctrl-C), and a worker that dies of one takes
    the run with it before its last checkpoint. The parent still ends its workers one by one, by SIGTERM.
    """
    gc.freeze()
    if hasattr(os, "setpgrp"):  # Windows has neither groups nor SIGUSR1
        os.setpgrp()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """A loader's batch on `device`, its videos as float32 `[B, 3, T, H, W]` in [-1, 1]."""
    moved = batch.to(device)
    moved.videos = {name: to_float(video).contiguous() for name, video in moved.videos.items()}
    return moved


def _rows_per_rank(batch_size: int, world_size: int, micro_batch: int | None) -> int:
    rows, odd = divmod(batch_size, world_size)
    if odd or not rows:
        raise ConfigError(
            f"batch_size {batch_size} cannot be shared by {world_size} processes",
            hint="set train.batch_size to a multiple of the number of processes",
        )
    if micro_batch is not None and rows % micro_batch:
        raise ConfigError(
            f"{rows} rows per process are not a multiple of micro_batch {micro_batch}",
            hint="set train.micro_batch to a divisor of batch_size / processes",
        )
    return rows


class _Positions:
    """Lists of stream positions, one list per micro-batch of this rank, without end."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int, micro_batch: int) -> None:
        self._start, self._batch_size = start, batch_size
        self._rank, self._world_size, self._micro_batch = rank, world_size, micro_batch

    def __iter__(self) -> Iterator[list[int]]:
        base = self._start
        while True:
            mine = range(base + self._rank, base + self._batch_size, self._world_size)
            for first in range(0, len(mine), self._micro_batch):
                yield list(mine[first : first + self._micro_batch])
            base += self._batch_size


class StreamDataset(Dataset[Item]):
    """Position of the stream to item: pixels by component, integers about them, label, caption."""

    def __init__(
        self,
        store: VideoStore,
        view: ClipView,
        data: DataSection,
        clips: tuple[int, ...],
        seed: int,
        captions: CaptionReader | None = None,
    ) -> None:
        self._store, self._view, self._data, self._seed = store, view, data, seed
        self._captions = captions
        self._order = StreamOrder(clips, seed)

    def __getitem__(self, position: int) -> Item:
        index = self._order.clip_at(position)
        clip = self._store.clips[index]
        data = self._data
        cut = cut_clip(self._view, clip.num_frames, data.frame_stride, data.random_start, self._seed, position)
        read = self._still if clip.num_frames == 1 else self._store.read
        caption = _caption(clip.captions, self._seed, position)
        return {
            "videos": {name: read(index, window) for name, window in cut.windows.items()},
            "meta": dict(cut.meta),
            "label": -1 if clip.label is None else clip.label,
            "caption": caption,
            "position": position,
            "text": {} if self._captions is None else self._captions.read(caption),
        }

    def _still(self, index: int, window: Window) -> np.ndarray:
        """A window of an image, repeated along time."""
        frame = self._store.read(index, replace(window, start=0, stride=1, frames=1))
        return np.repeat(frame, window.frames, axis=0)


def _caption(captions: tuple[str, ...], seed: int, position: int) -> str:
    """One of a clip's captions, chosen anew at each position."""
    if len(captions) < 2:
        return captions[0] if captions else ""
    return captions[int(numpy_stream(seed, "data/caption", position).integers(len(captions)))]


def collate(items: list[Item]) -> dict[str, Any]:
    """Items to the fields of a `Batch`, as a plain dict, which DataLoader knows how to pin."""
    first = items[0]
    return {
        "videos": {k: torch.from_numpy(np.stack([i["videos"][k] for i in items])) for k in first["videos"]},
        "meta": {k: torch.from_numpy(np.stack([np.asarray(i["meta"][k]) for i in items])) for k in first["meta"]},
        "labels": torch.tensor([i["label"] for i in items], dtype=torch.int64),
        "captions": [i["caption"] for i in items],
        "positions": [i["position"] for i in items],
        "text": {k: torch.from_numpy(np.stack([i["text"][k] for i in items])) for k in first["text"]},
    }
