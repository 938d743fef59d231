"""From clips to features: choose clips by protocol, batch them, run the detector, keep one row a clip.

Videos are never held beyond the batch and the few that are read ahead, so memory does not grow with their number; a
row of features is 1.6 kB.

Shapes: N clips, T frames, H W pixels, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hpdm_core.errors import DataError
from hpdm_core.metrics.deal import Deal
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.frechet import Statistics, require_finite
from hpdm_core.metrics.protocol import Protocol
from hpdm_core.metrics.sources import Clip, VideoSource
from hpdm_core.rng import numpy_stream
from hpdm_core.video import resize_frames

_BLOCK = 1024

View = Literal["video", "static", "shuffled"]
"""A clip as it is, its middle frame repeated, or its frames in a seeded random order."""

VIEWS: tuple[View, ...] = get_args(View)


class FeatureSet:
    """Features of a set of clips under one view: float32 rows, and their float64 moments when they are asked for."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self._statistics: Statistics | None = None

    def add(self, features_ND: np.ndarray) -> None:
        """Append a batch. Raises DataError on a non-finite value."""
        rows = np.asarray(features_ND, dtype=np.float32)
        require_finite(rows)
        self.rows.append(rows)
        self._statistics = None

    @property
    def features(self) -> np.ndarray:
        """All rows, float32 [N, D]."""
        if len(self.rows) > 1:
            self.rows = [np.concatenate(self.rows)]
        return self.rows[0]

    @property
    def statistics(self) -> Statistics:
        """Moments of all rows, added in blocks of fixed length, so that batches and ranks leave no trace in them."""
        if self._statistics is None:
            rows = self.features
            self._statistics = Statistics(rows.shape[1])
            for start in range(0, len(rows), _BLOCK):
                self._statistics.update(rows[start : start + _BLOCK])
        return self._statistics


@dataclass
class Selection:
    """What was taken from a source: filled while its clips are read."""

    count: int = 0
    too_short: int = 0
    source_size: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    names: list[str] = field(default_factory=list)

    @staticmethod
    def merged(parts: Sequence[Selection]) -> Selection:
        """What all ranks have taken together."""
        seen = [part for part in parts if part.count]
        first = seen[0] if seen else Selection()
        names = [name for part in seen for name in part.names]
        return Selection(sum(p.count for p in seen), parts[0].too_short, first.source_size, first.size, names)


def frame_rule(frames: int, stride: int, start: str, seed: int) -> Callable[[int, int], range | None]:
    """The frames of a clip as a function of (video number, its length): None where the video is too short.

    A random start is a function of the seed and the video's number alone.
    """
    span = (frames - 1) * stride + 1

    def choose(index: int, length: int) -> range | None:
        room = length - span
        if room < 0:
            return None
        first = 0 if start == "first" else room // 2
        if start == "random":
            first = int(numpy_stream(seed, "eval/start", index).integers(room + 1))
        return range(first, first + span, stride)

    return choose


def real_clips(
    source: VideoSource, protocol: Protocol, selection: Selection, workers: int = 4, deal: Deal | None = None
) -> Iterator[np.ndarray]:
    """The real clips that the protocol takes, brought to its frame size: uint8 [T, H, W, 3] each; this rank's of them.

    Raises DataError when fewer than the protocol's count are long enough.
    """
    deal = deal or Deal()
    rule, clip = protocol.real, protocol.clip
    order: Sequence[int] = range(len(source))
    if rule.select == "random":
        order = numpy_stream(rule.seed, "eval/order").permutation(len(source)).tolist()
    choose = frame_rule(clip.frames, rule.stride, rule.start, rule.seed)
    known = _chosen(source, order, (clip.frames - 1) * rule.stride + 1, rule.count)
    if known is not None:
        chosen, selection.too_short = known
        found = source.clips(deal.mine(chosen), choose, clip.size, workers)
        yield from (_fitted(item, protocol, selection) for item in found)
        usable = len(chosen)
    else:  # only decoding tells which video files are long enough, so every rank reads them all
        usable = 0
        found = source.clips(order, choose, clip.size, workers)
        for item in islice(_long_enough(found, selection), rule.count):
            if deal.takes(usable):
                yield _fitted(item, protocol, selection)
            usable += 1
    if usable == 0 or usable < (rule.count or 0):
        raise _too_few_real(protocol, len(source), usable, selection.too_short)


def _chosen(source: VideoSource, order: Sequence[int], span: int, count: int | None) -> tuple[list[int], int] | None:
    """The first `count` videos of at least `span` frames and how many shorter ones were passed; None if not known."""
    chosen: list[int] = []
    too_short = 0
    for index in order:
        if len(chosen) == count:
            break
        length = source.length(index)
        if length is None:
            return None
        if length < span:
            too_short += 1
        else:
            chosen.append(index)
    return chosen, too_short


def count_real(source: VideoSource, protocol: Protocol) -> int:
    """How many clips `real_clips` yields over all ranks, at most: video files may prove too short once decoded.

    Raises what `real_clips` would for too few, as far as that is known without decoding.
    """
    span = (protocol.clip.frames - 1) * protocol.real.stride + 1
    lengths = [source.length(index) for index in range(len(source))]
    short = sum(length is not None and length < span for length in lengths)
    usable = len(source) - short
    if usable == 0 or usable < (protocol.real.count or 0):
        raise _too_few_real(protocol, len(source), usable, short)
    return min(usable, protocol.real.count or usable)


def _too_few_real(protocol: Protocol, videos: int, usable: int, short: int) -> DataError:
    span = (protocol.clip.frames - 1) * protocol.real.stride + 1
    if usable == 0:
        return DataError(
            f"none of the {videos} real videos has the {span} frames that a clip needs",
            hint="choose a protocol with shorter clips, or prepare the videos at a higher frame rate",
        )
    return DataError(
        f"the protocol takes {protocol.real.count} real clips; there are {usable} "
        f"({short} videos are shorter than {span} frames)",
        hint="give more real videos" + _or_fewer(usable),
    )


def check_count(source: VideoSource, protocol: Protocol) -> None:
    """Raise DataError where there are fewer generated videos than the protocol takes."""
    if len(source) < protocol.fake.count:
        raise DataError(
            f"the protocol takes {protocol.fake.count} generated videos; there are {len(source)}",
            hint=f"generate {protocol.fake.count - len(source)} more" + _or_fewer(len(source)),
        )


def _or_fewer(count: int) -> str:
    """The other remedy, where `count` clips are enough for a distribution at all."""
    return f", or lower the number for both sides with --n {count}" if count > 1 else ""


def fake_clips(
    source: VideoSource, protocol: Protocol, selection: Selection, workers: int = 4, deal: Deal | None = None
) -> Iterator[np.ndarray]:
    """The generated clips in order, this rank's of them: uint8 [T, H, W, 3] each.

    Too short, too few or of mixed sizes is a DataError.
    """
    rule, clip = protocol.fake, protocol.clip
    order = (deal or Deal()).mine(range(rule.count))
    span = (clip.frames - 1) * rule.stride + 1
    check_count(source, protocol)
    choose = frame_rule(clip.frames, rule.stride, rule.start, 0)
    for item in source.clips(order, choose, clip.size, workers):
        if item.frames is None:
            raise DataError(
                f"generated video {item.name} has {item.video_frames} frames; protocol {protocol.name} needs {span}",
                hint="sample longer videos, or choose a protocol with shorter clips",
            )
        height, width = item.frames.shape[1:3]
        if selection.source_size not in (None, (height, width)):
            raise _mixed_sizes(item.name, (height, width), selection)
        yield _fitted(item, protocol, selection)
    if selection.count < len(order):
        raise DataError(f"the generator stopped after {selection.count} of {len(order)} videos")


def _mixed_sizes(name: str, size: tuple[int, int], other: Selection) -> DataError:
    first = "{}x{}".format(*other.source_size or ())
    return DataError(
        f"generated videos have mixed sizes: {name} is {size[0]}x{size[1]}, {other.names[0]} is {first}",
        hint="score videos of one size at a time",
    )


def require_one_size(parts: Sequence[Selection]) -> None:
    """Raise DataError where two ranks have read generated videos of different sizes."""
    seen = [part for part in parts if part.source_size is not None]
    for part in seen[1:]:
        if part.source_size is not None and part.source_size != seen[0].source_size:
            raise _mixed_sizes(part.names[0], part.source_size, seen[0])


def _long_enough(clips: Iterable[Clip], selection: Selection) -> Iterator[Clip]:
    for clip in clips:
        if clip.frames is None:
            selection.too_short += 1
        else:
            yield clip


def _fitted(clip: Clip, protocol: Protocol, selection: Selection) -> np.ndarray:
    """The clip at the protocol's frame size, counted. Without one, all sizes must agree."""
    assert clip.frames is not None
    size = (clip.frames.shape[1], clip.frames.shape[2])
    selection.source_size = selection.source_size or size
    wanted = protocol.clip.size or selection.source_size
    if protocol.clip.size is None and size != wanted:
        raise DataError(f"videos have mixed sizes: {clip.name} is {size[0]}x{size[1]}, others {wanted[0]}x{wanted[1]}")
    selection.size = wanted
    selection.count += 1
    selection.names.append(clip.name)
    return resize_frames(clip.frames, wanted, fit=protocol.clip.fit)


@dataclass(frozen=True)
class Job:
    """One network over one view of every clip."""

    detector: Detector
    view: View = "video"


def extract(
    clips: Iterable[np.ndarray],
    jobs: Mapping[str, Job],
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
    read_ahead: bool = True,
    deal: Deal | None = None,
) -> dict[str, FeatureSet]:
    """Features of every clip by job, in one pass. `advance` is told how many clips each batch held.

    Where `deal` says that these are one rank's clips, every rank gets the features of all, in order.

    With `read_ahead` the next batch is read and packed while the networks work on this one. It must be off where
    making the clips is itself computation: TF32 is a setting of the process, and two threads would undo each other's.
    """
    sets = {name: FeatureSet() for name in jobs}
    views: list[View] = list(dict.fromkeys(job.view for job in jobs.values())) or ["video"]
    deal = deal or Deal(batch_size)
    packed = _packed(iter(clips), views, deal, pin=torch.device(device).type == "cuda")
    launched: dict[str, Tensor] = {}
    for batch in _ahead(packed) if read_ahead else packed:
        with torch.inference_mode():
            shown = {view: clips_NTHWC.to(device, non_blocking=True) for view, clips_NTHWC in batch.items()}
            running = {name: job.detector.features(shown[job.view]).float() for name, job in jobs.items()}
            _collect(sets, launched)
        launched = running
        if advance is not None:
            advance(len(next(iter(batch.values()))))
    _collect(sets, launched)
    return sets if deal.size == 1 else {name: _gathered(own, deal) for name, own in sets.items()}


def _gathered(own: FeatureSet, deal: Deal) -> FeatureSet:
    """The features of all ranks, in the order of the clips."""
    parts = deal.gather(own.features if own.rows else None)
    counts = [0 if part is None else len(part) for part in parts]
    rows = np.concatenate([part for part in parts if part is not None])
    found = FeatureSet()
    found.add(rows[deal.order(counts)])
    return found


def _ahead(batches: Iterator[dict[View, Tensor]]) -> Iterator[dict[View, Tensor]]:
    """The same batches, each made on another thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch


def _collect(sets: dict[str, FeatureSet], launched: dict[str, Tensor]) -> None:
    for name, features in launched.items():
        sets[name].add(features.cpu().numpy())


def _packed(
    clips: Iterator[np.ndarray], views: Sequence[View], deal: Deal, *, pin: bool
) -> Iterator[dict[View, Tensor]]:
    """Batches of uint8 clips [N, T, H, W, 3] by view, in pinned memory where a GPU will read them."""
    count = 0
    while batch := list(islice(clips, deal.batch_size)):
        position = deal.position(count)
        shown: dict[View, Tensor] = {}
        for view in views:
            stacked = torch.from_numpy(np.stack([view_of(clip, view, position + i) for i, clip in enumerate(batch)]))
            shown[view] = stacked.pin_memory() if pin else stacked
        count += len(batch)
        yield shown


def view_of(clip_THWC: np.ndarray, view: View, position: int) -> np.ndarray:
    """One view of a clip; the shuffle is a function of the clip's position alone."""
    frames = len(clip_THWC)
    if view == "static":
        return np.repeat(clip_THWC[frames // 2][None], frames, axis=0)
    if view == "shuffled":
        return clip_THWC[numpy_stream(0, "eval/shuffle", position).permutation(frames)]
    return clip_THWC
