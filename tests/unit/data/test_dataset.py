"""The training stream: order, starts, batches; equal for any number of workers and ranks."""

from __future__ import annotations

import gc
import itertools
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from hpdm_core.config.schema import DataSection
from hpdm_core.data.dataset import make_loader, to_device
from hpdm_core.data.order import StreamOrder, cut_clip, frames_needed, plan_clips
from hpdm_core.data.store import VideoStore
from hpdm_core.data.synthetic import render_clip
from hpdm_core.data.window import Batch, Cut, Window
from hpdm_core.errors import ConfigError, DataError, StoreMismatch


@dataclass(frozen=True)
class TwoWindows:
    """A random 16x16 patch of every frame, and all of every second frame at the coarse size."""

    frames: int = 5
    sizes: tuple[tuple[int, int], ...] = ((32, 48), (16, 24))

    def cut(self, start: int, rng: np.random.Generator) -> Cut:
        top, left = int(rng.integers(17)), int(rng.integers(33))
        fine = Window((32, 48), start, 1, self.frames, top, left, 16, 16)
        coarse = Window((16, 24), start, 2, (self.frames + 1) // 2, 0, 0, 16, 24)
        return Cut({"fine": fine, "coarse": coarse}, {"offset": np.array([top, left])})


VIEW = TwoWindows()


def data(**changes: object) -> DataSection:
    return DataSection(dataset="test", **{"workers": 0, **changes})  # type: ignore[arg-type]


def take(store: VideoStore, num: int, section: DataSection | None = None, **options: object) -> list[Batch]:
    options = {"seed": 5, "batch_size": 8, **options}
    return list(itertools.islice(make_loader(store, VIEW, section or data(), **options), num))  # type: ignore[arg-type]


def rows(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, str]]:
    """Everything in the batches by position."""
    found = {}
    for batch in batches:
        for i, position in enumerate(batch.positions):
            found[position] = (
                batch.videos["fine"][i],
                batch.videos["coarse"][i],
                batch.meta["offset"][i],
                int(batch.labels[i]),
                batch.captions[i],
            )
    return found


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    a, b = rows(first), rows(second)
    assert a.keys() == b.keys()
    for position in a:
        for left, right in zip(a[position], b[position], strict=True):
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_batches_hold_what_the_view_asked_for(raw_store: VideoStore) -> None:
    order = StreamOrder(range(20), 5)
    for batch in take(raw_store, 3):
        assert batch.videos["fine"].shape == (8, 5, 16, 16, 3)
        assert batch.videos["fine"].dtype == torch.uint8
        assert batch.labels.dtype == torch.int64
        for i, position in enumerate(batch.positions):
            clip = order.clip_at(position)
            video, info = render_clip(3, clip, 12, (32, 48))
            start = cut_clip(VIEW, 12, 1, True, 5, position).windows["fine"].start
            top, left = batch.meta["offset"][i].tolist()
            expected = video[start : start + 5, top : top + 16, left : left + 16]
            assert np.array_equal(batch.videos["fine"][i].numpy(), expected)
            assert (int(batch.labels[i]), batch.captions[i]) == (info.label, info.caption)


def test_to_device_gives_floats_in_range(raw_store: VideoStore) -> None:
    batch = take(raw_store, 1)[0]
    levels = batch.videos["fine"].clone()
    moved = to_device(batch, "cpu")
    video = moved.videos["fine"]
    assert video.shape == (8, 3, 5, 16, 16)
    assert video.dtype == torch.float32
    assert video.is_contiguous()
    assert torch.allclose(video.movedim(1, -1), levels.float() / 127.5 - 1, atol=1e-6)
    assert batch.videos["fine"].dtype == torch.uint8  # the loader's batch is left as it was


class Circular:
    """Collected by the garbage collector only; notes the process that did it."""

    def __init__(self, seen: list[int]) -> None:
        self.itself, self.seen = self, seen

    def __del__(self) -> None:
        self.seen.append(os.getpid())


def test_workers_inherit_no_garbage(raw_store: VideoStore) -> None:
    """Tensors on a GPU, for example in the graph of an earlier phase: a forked worker that frees them dies."""
    seen: list[int] = []
    gc.disable()
    try:
        Circular(seen)
        take(raw_store, 1, data(workers=1))
    finally:
        gc.enable()
    assert seen == [os.getpid()]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(raw_store: VideoStore, workers: int) -> None:
    assert_same(take(raw_store, 4), take(raw_store, 4, data(workers=workers)))


def test_a_stream_continues_from_any_position(raw_store: VideoStore) -> None:
    whole = take(raw_store, 6)
    assert_same(whole[4:], take(raw_store, 2, start_position=32))
    assert [b.positions[0] for b in whole] == [0, 8, 16, 24, 32, 40]


@pytest.mark.parametrize(("world_size", "micro_batch"), [(2, None), (2, 2), (4, 1), (8, 1), (1, 4)])
def test_ranks_and_micro_batches_share_one_stream(
    raw_store: VideoStore, world_size: int, micro_batch: int | None
) -> None:
    steps = 3
    per_step = 8 // world_size // (micro_batch or 8 // world_size)
    shared = []
    for rank in range(world_size):
        mine = take(raw_store, steps * per_step, rank=rank, world_size=world_size, micro_batch=micro_batch)
        assert all(position % world_size == rank for batch in mine for position in batch.positions)
        positions = [p for batch in mine for p in batch.positions]
        assert positions == sorted(positions)
        shared += mine
    assert_same(take(raw_store, steps), shared)


def test_batches_that_do_not_divide_are_refused(raw_store: VideoStore) -> None:
    with pytest.raises(ConfigError, match="cannot be shared by 3"):
        take(raw_store, 1, world_size=3)
    with pytest.raises(ConfigError, match="not a multiple of micro_batch 3"):
        take(raw_store, 1, world_size=2, micro_batch=3)


def test_loaders_leave_the_global_generator_alone(raw_store: VideoStore) -> None:
    before = torch.get_rng_state()
    take(raw_store, 2, data(workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_shows_every_clip_once_in_a_new_order() -> None:
    order = StreamOrder([3, 5, 8, 13, 21], seed=1)
    epochs = [tuple(order.clip_at(5 * e + i) for i in range(5)) for e in range(20)]
    assert all(sorted(epoch) == [3, 5, 8, 13, 21] for epoch in epochs)
    assert len(set(epochs)) > 10
    backwards = [order.clip_at(k) for k in reversed(range(100))]
    assert backwards[::-1] == [clip for epoch in epochs for clip in epoch]
    assert [StreamOrder([3, 5, 8, 13, 21], seed=2).clip_at(k) for k in range(100)] != backwards[::-1]


def test_starts_cover_the_clip_and_frame_stride_spreads_the_windows() -> None:
    starts = set()
    for position in range(300):
        windows = cut_clip(VIEW, 12, 2, True, 0, position).windows
        fine, coarse = windows["fine"], windows["coarse"]
        assert (fine.stride, coarse.stride) == (2, 4)
        assert fine.start == coarse.start
        assert fine.last_frame == coarse.last_frame == fine.start + 8
        assert fine.last_frame < 12
        starts.add(fine.start)
    assert starts == {0, 1, 2, 3}
    assert cut_clip(VIEW, 12, 2, False, 0, 7).windows["fine"].start == 0
    assert frames_needed(VIEW, 1) == 5
    assert frames_needed(VIEW, 3) == 13


def test_short_clips_are_counted_and_left_out(raw_store: VideoStore) -> None:
    assert len(plan_clips(raw_store, VIEW).kept) == 20
    assert plan_clips(raw_store, TwoWindows(frames=12)).dropped == {}
    with pytest.raises(DataError, match=r"20 shorter than 13 frames") as caught:
        plan_clips(raw_store, TwoWindows(frames=13))
    assert "12 frames" in caught.value.hint
    with pytest.raises(DataError, match=r"shorter than 13 frames \(5 at every 3\)"):
        plan_clips(raw_store, VIEW, 3)


def test_a_view_of_absent_sizes_is_refused(raw_store: VideoStore) -> None:
    with pytest.raises(StoreMismatch, match="64x64"):
        plan_clips(raw_store, TwoWindows(sizes=((64, 64),)))


def test_labels_can_be_required(raw_store: VideoStore) -> None:
    from dataclasses import replace

    clips = tuple(replace(c, label=None) if c.index % 2 else c for c in raw_store.clips)
    half = VideoStore(raw_store.path, raw_store.about, clips)
    assert plan_clips(half, VIEW, need_labels=True).dropped == {"no label": 10}
    assert plan_clips(half, VIEW).dropped == {}
    labels = torch.cat([b.labels for b in take(half, 5)])
    assert (labels == -1).sum() == 20


def test_images_are_still_videos_only_if_asked(raw_store: VideoStore) -> None:
    """Clips 0 to 3 are cut down to one frame each."""
    clips = tuple(replace(clip, num_frames=1) if clip.index < 4 else clip for clip in raw_store.clips)
    store = VideoStore(raw_store.path, raw_store.about, clips)
    assert plan_clips(store, VIEW).dropped == {"shorter than 5 frames": 4}
    with_images = data(images="repeat", frame_stride=2)
    batches = take(store, 5, with_images)
    shown = {i: batch for batch in batches for i in batch.positions}
    order, stills = StreamOrder(range(20), 5), 0
    for position, batch in shown.items():
        clip, row = order.clip_at(position), batch.positions.index(position)
        fine, coarse = batch.videos["fine"][row], batch.videos["coarse"][row]
        assert fine.shape == (5, 16, 16, 3)
        assert coarse.shape == (3, 16, 24, 3)
        if clip < 4:
            stills += 1
            first = raw_store.read_frames(clip, (16, 24), num_frames=1)[0]
            assert all(np.array_equal(frame.numpy(), first) for frame in coarse)
            assert all(torch.equal(frame, fine[0]) for frame in fine)
        else:
            assert not torch.equal(coarse[0], coarse[-1])
    assert stills >= 4
