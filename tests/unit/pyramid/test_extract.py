"""What training reads: nested windows of a clip (structural test ix), and level videos from a whole one."""

import numpy as np
import pytest
import torch

from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.data.store import VideoStore
from hpdm_core.data.synthetic import render_clip
from hpdm_core.pyramid.extract import PatchView, crop, level_name, level_video
from hpdm_core.pyramid.geometry import Pyramid
from hpdm_core.video import halve_frames, to_float

PYRAMIDS = [
    Pyramid((16, 64, 64), (4, 16, 16)),
    Pyramid((16, 48, 128), (8, 12, 32)),
    Pyramid((4, 64, 64), (4, 16, 16)),  # time stands still
]


def source(pyramid, extra_frames=7):
    """uint8 [T, H, W, 3] noise: no two crops are alike."""
    shape = (pyramid.video[0] + extra_frames, *pyramid.video[1:], 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def spatial_levels(video_THWC, sizes):
    """Frame size to frames, by repeated halving, as a prepared store holds them."""
    found, frames = {}, video_THWC
    while True:
        found[frames.shape[1:3]] = frames
        if len(found) == len(sizes):
            return found
        frames = halve_frames(frames)


def read(levels, window):
    """The window as a store would cut it: uint8 [T, h, w, 3]."""
    frames = levels[window.size][window.start : window.last_frame + 1 : window.stride]
    return frames[:, window.top : window.top + window.height, window.left : window.left + window.width]


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_ix_the_finest_target_is_a_bit_exact_crop_of_the_source(pyramid):
    video, view = source(pyramid), PatchView(pyramid)
    levels = spatial_levels(video, view.sizes)
    finest = pyramid.num_levels - 1
    for seed in range(20):
        start = seed % 8
        cut = view.cut(start, np.random.default_rng(seed))
        t, h, w = cut.meta["offsets"][finest]
        frames, height, width = pyramid.patch
        expected = video[start + t : start + t + frames, h : h + height, w : w + width]
        window = cut.windows[level_name(finest)]
        assert window.size == video.shape[1:3]
        assert window.stride == 1
        assert np.array_equal(read(levels, window), expected)


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_every_window_is_an_integer_crop_of_its_own_level(pyramid):
    """At test time a level is generated on that same grid: no resampling between the two."""
    video, view = source(pyramid), PatchView(pyramid)
    levels = spatial_levels(video, view.sizes)
    for seed in range(10):
        cut = view.cut(seed % 8, np.random.default_rng(seed))
        clip = torch.from_numpy(video[seed % 8 : seed % 8 + view.frames])
        for level in range(pyramid.num_levels):
            patch = to_float(torch.from_numpy(read(levels, cut.windows[level_name(level)])))
            whole = level_video(to_float(clip)[None], pyramid, level)
            expected = crop(whole, tuple(cut.meta["offsets"][level]), pyramid.patch)[0]
            assert patch.shape == (3, *pyramid.patch)
            # A store rounds to whole grey levels at each halving; half a level each.
            halvings = pyramid.step(level)[1].bit_length() - 1
            assert (patch - expected).abs().max() <= (0.5 * halvings + 0.01) / 127.5


def test_windows_stay_inside_the_clip_and_start_where_they_are_told():
    view = PatchView(PYRAMIDS[0])
    assert view.frames == 16
    assert view.sizes == ((64, 64), (32, 32), (16, 16))
    for seed in range(50):
        windows = view.cut(100, np.random.default_rng(seed)).windows
        assert list(windows) == ["level0", "level1", "level2"]
        assert [w.stride for w in windows.values()] == [4, 2, 1]
        for w in windows.values():
            assert 100 <= w.start <= w.last_frame < 116
            assert 0 <= w.top <= w.size[0] - w.height
            assert 0 <= w.left <= w.size[1] - w.width
        assert windows["level0"].start == 100


def test_the_same_generator_gives_the_same_cut():
    view = PatchView(PYRAMIDS[1])
    first, second = (view.cut(3, np.random.default_rng(5)) for _ in range(2))
    assert first.windows == second.windows
    assert np.array_equal(first.meta["offsets"], second.meta["offsets"])


def test_a_level_video_strides_frames_and_averages_pixels():
    pyramid = PYRAMIDS[0]
    video = torch.randn(1, 3, *pyramid.video, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coarse = level_video(video, pyramid, 0)
    assert coarse.shape == (1, 3, 4, 16, 16)
    torch.testing.assert_close(coarse[0, 1, 2, 3, 5], video[0, 1, 8, 12:16, 20:24].mean())
    assert torch.equal(level_video(video, pyramid, 2), video)


def test_ix_through_a_prepared_store(tmp_path):
    """The same through the files that training reads, for a clip whose pixels are known."""
    pyramid = PYRAMIDS[0]
    view = PatchView(pyramid)
    scan = scan_source(SourceOptions(kind="synthetic", num_clips=1, num_frames=20, seed=4))
    prepare_store(scan, tmp_path / "store", Recipe(view.sizes), PrepareOptions(workers=1))
    store = VideoStore.open(tmp_path / "store")
    video, _ = render_clip(4, 0, 20, (64, 64))
    for seed in range(5):
        cut = view.cut(seed % 5, np.random.default_rng(seed))
        t, h, w = cut.meta["offsets"][2]
        start = seed % 5 + t
        patch = store.read(0, cut.windows["level2"])
        assert np.array_equal(patch, video[start : start + 4, h : h + 16, w : w + 16])
