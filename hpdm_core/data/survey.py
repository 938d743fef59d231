"""What a store holds, for people: counts, lengths, rates, classes, duplicates, clips in which nothing happens."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hpdm_core.data.store import ClipInfo, VideoStore
from hpdm_core.data.write import spread_frames
from hpdm_core.errors import DataError

BLACK_BELOW = 8.0
STATIC_BELOW = 1.0
FRAMES_LOOKED_AT = 16


@dataclass(frozen=True)
class Survey:
    """Facts about a store. `lengths` counts clips by (first, last) number of frames of a bin.

    `duplicates` are ids of clips with equal frames. `black` clips are never brighter than 8 of 255 on average;
    no pixel of a `static` clip changes by 1 of 255. Both are judged on up to 16 frames of the coarsest size.
    """

    num_clips: int
    num_frames: int
    lengths: dict[tuple[int, int], int]
    rates: dict[str, int]
    classes: dict[str, int]
    decoders: dict[str, int]
    notes: dict[str, int]
    num_captioned: int
    duplicates: tuple[tuple[str, ...], ...]
    black: tuple[str, ...]
    static: tuple[str, ...]


def survey_store(store: VideoStore, on_clip: Callable[[], None] = lambda: None) -> Survey:
    """Look at every clip of `store`; `on_clip` is called after each."""
    black, static = [], []
    for clip in store.clips:
        brightness, change = _activity(store, clip)
        if brightness < BLACK_BELOW:
            black.append(clip.id)
        elif change < STATIC_BELOW and clip.num_frames > 1:
            static.append(clip.id)
        on_clip()
    labels = Counter(c.label for c in store.clips)
    classes = {name: labels[i] for i, name in enumerate(store.classes)}
    if labels[None]:
        classes["(no label)"] = labels[None]
    return Survey(
        num_clips=len(store),
        num_frames=sum(c.num_frames for c in store.clips),
        lengths=length_histogram([c.num_frames for c in store.clips]),
        rates=_counts(_rate(c) for c in store.clips),
        classes=classes,
        decoders=_counts(c.decoder for c in store.clips),
        notes=_counts(_kind_of(note) for c in store.clips for note in c.notes),
        num_captioned=sum(1 for c in store.clips if c.captions),
        duplicates=_duplicates(store.clips),
        black=tuple(black),
        static=tuple(static),
    )


def length_histogram(lengths: Sequence[int]) -> dict[tuple[int, int], int]:
    """Clips by length, in bins that double: 1, 2-3, 4-7, 8-15, …; empty bins between full ones are kept."""
    if not lengths:
        return {}
    counts = Counter(int(length).bit_length() - 1 for length in lengths)
    return {(2**k, 2 ** (k + 1) - 1): counts[k] for k in range(min(counts), max(counts) + 1)}


def verify_store(store: VideoStore, on_clip: Callable[[], None] = lambda: None) -> list[str]:
    """Read every stored byte; the ids of the clips whose checksums are wrong, each with its frame sizes."""
    damaged = []
    for clip in store.clips:
        for size, expected in zip(store.sizes, clip.crc32, strict=True):
            try:
                found = zlib.crc32(store.stored_bytes(clip.index, size))
            except DataError as error:
                damaged.append(f"{clip.id}: {error}")
                continue
            if found != expected:
                damaged.append(f"{clip.id}: checksum of the {size[0]}x{size[1]} frames is wrong")
        on_clip()
    return damaged


def _activity(store: VideoStore, clip: ClipInfo) -> tuple[float, float]:
    """Mean brightness of the brightest frame, and the largest mean change of a pixel against the first frame."""
    frames = spread_frames(store.read_frames(clip.index, store.sizes[-1]), FRAMES_LOOKED_AT).astype(np.float32)
    return float(frames.mean(axis=(1, 2, 3)).max()), float(np.abs(frames - frames[0]).max())


def _rate(clip: ClipInfo) -> str:
    if clip.fps is None:
        return "unknown"
    return f"{clip.fps:g}" + (" (variable)" if "variable frame rate" in clip.notes else "")


def _kind_of(note: str) -> str:
    """A note without its numbers, so that notes can be counted."""
    words = [word for word in note.split() if not any(c.isdigit() for c in word)]
    return " ".join(words).removesuffix(" from")


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _duplicates(clips: Sequence[ClipInfo]) -> tuple[tuple[str, ...], ...]:
    """Groups of clips whose stored frames have equal checksums, as those of equal source files do."""
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = defaultdict(list)
    for clip in clips:
        groups[clip.num_frames, clip.crc32].append(clip.id)
    return tuple(tuple(ids) for ids in groups.values() if len(ids) > 1)
