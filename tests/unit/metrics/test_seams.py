"""Seam ratio: one on seamless video, growing with the seam, on the right axis, and shown in the right place."""

import numpy as np
import pytest

from hpdm_core.errors import ConfigError
from hpdm_core.metrics.seams import frame_changes, join_ratio, seam_heatmap, seam_observer, seam_ratio, tile_borders


def noise(seed=0, shape=(8, 32, 32, 3)):
    return np.random.default_rng(seed).normal(128, 10, shape)


def with_seam(step):
    video = noise()
    video[:, :, 16:] += step
    return video


def test_borders_of_disjoint_and_overlapping_tiles():
    assert tile_borders(64, 16, 16) == (16, 32, 48)
    assert tile_borders(64, 32, 16) == (16, 32, 48)
    assert tile_borders(40, 16, 16) == (16, 24, 32)  # the last tile is moved back to fit
    assert tile_borders(16, 16, 16) == ()
    assert tile_borders(64, 24, 20) == (20, 24, 40, 44)
    with pytest.raises(ConfigError):
        tile_borders(64, 16, 17)


def test_seamless_noise_has_ratio_one():
    report = seam_ratio(noise(), {"height": (16,), "width": (16,), "time": (4,)})
    assert report.ratios.keys() == {"time", "height", "width"}
    assert all(ratio == pytest.approx(1.0, abs=0.1) for ratio in report.ratios.values())


def test_ratio_grows_with_the_seam_on_its_own_axis():
    reports = [seam_ratio(with_seam(step), {"height": (16,), "width": (16,)}) for step in (0, 10, 20, 40)]
    widths = [report.ratios["width"] for report in reports]
    assert widths == sorted(widths)
    assert widths[-1] > 5
    assert all(report.ratios["height"] == pytest.approx(1.0, abs=0.2) for report in reports)
    # A step s adds s^2 to the border energy 2 * 10^2.
    assert widths[2] == pytest.approx(1 + 20**2 / 200, rel=0.15)


def test_a_jump_in_time_is_seen():
    video = noise()
    video[4:] += 30
    assert seam_ratio(video, {"time": (4,), "height": (16,)}).ratios["time"] > 3


def test_axes_without_borders_and_flat_video():
    assert seam_ratio(noise(), {}).worst == 1.0
    flat = np.zeros((4, 8, 8, 3), np.uint8)
    assert seam_ratio(flat, {"width": (4,)}).worst == 1.0
    flat[:, :, 4:] = 9
    assert seam_ratio(flat, {"width": (4,)}).worst == float("inf")


def test_heatmap_points_at_the_seam():
    heat = seam_heatmap(with_seam(40))
    assert heat.shape == (32, 32)
    assert set(heat.argmax(axis=1)) == {16}
    assert heat.mean() == pytest.approx(1.0, rel=1e-5)
    square = np.zeros((2, 16, 16, 3), np.uint8)
    square[:, 4:8, 4:8] = 255  # most of it is flat: the median is 0
    assert seam_heatmap(square).mean() == pytest.approx(1.0, rel=1e-5)
    assert seam_heatmap(np.zeros((2, 8, 8, 3), np.uint8)).max() == 0


def test_observer_takes_tiles_larger_than_the_video():
    observe = seam_observer((16, 16, 16), (16, 16, 16))
    assert observe(0, with_seam(40))["width"] > 5
    assert observe(0, with_seam(40))["height"] == pytest.approx(1.0, abs=0.2)
    assert seam_observer((64, 64, 64), (64, 64, 64))(0, with_seam(40)) == {}


def test_detail_elsewhere_in_the_frame_is_no_seam():
    video = noise()
    video[:, :, 20:] = np.random.default_rng(1).normal(128, 60, video[:, :, 20:].shape)
    assert seam_ratio(video, {"width": (8,)}).ratios["width"] == pytest.approx(1.0, abs=0.2)


def test_the_change_where_clips_join():
    ramp = np.broadcast_to(np.arange(12.0)[:, None, None, None], (12, 4, 4, 3)).copy()
    assert frame_changes(ramp).tolist() == [1.0] * 11
    assert join_ratio(ramp, (4, 8)) == pytest.approx(1.0)
    ramp[4:] += 2.0  # a jump of 3 at one of two joins
    assert join_ratio(ramp, (4, 8)) == pytest.approx(2.0)
    still = np.zeros((4, 2, 2, 3))
    assert join_ratio(still, (2,)) == 1.0
    still[2:] = 1.0
    assert join_ratio(still, (2,)) == float("inf")
    for joins in ((), (0,), (4,), (1, 2, 3)):
        with pytest.raises(ConfigError, match="joins"):
            join_ratio(still, joins)


def blocks(video, size=8):
    """The mean of each 8x8 block: what is left of a picture at the worst JPEG quality, with a little noise over it."""
    t, h, w, c = video.shape
    coarse = video.reshape(t, h // size, size, w // size, size, c).mean(axis=(2, 4), keepdims=True)
    whole = np.broadcast_to(coarse, (t, h // size, size, w // size, size, c)).reshape(video.shape)
    return whole + noise(5, video.shape) / 20


def test_codec_blocks_are_no_seams_and_hide_none():
    video = blocks(np.random.default_rng(2).normal(128, 40, (8, 96, 96, 3)))
    borders = {"width": (40, 80), "height": (40, 80)}
    assert all(ratio == pytest.approx(1.0, abs=0.35) for ratio in seam_ratio(video, borders).ratios.values())
    video[:, :, 40:80] += 40
    report = seam_ratio(video, borders)
    assert report.ratios["width"] > 3
    assert report.ratios["height"] == pytest.approx(1.0, abs=0.35)
