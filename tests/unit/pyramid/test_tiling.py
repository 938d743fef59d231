"""Tile plans: counts (structural test vii), merging (vi), parents, windows."""

import itertools

import numpy as np
import pytest
import torch

from hpdm_core.errors import ConfigError
from hpdm_core.pyramid.geometry import Pyramid
from hpdm_core.pyramid.tiling import TileGrid

NONE, SPATIAL, TIME, FULL = (False,) * 3, (False, True, True), (True, False, False), (True,) * 3
ALL_OVERLAPS = list(itertools.product([False, True], repeat=3))
UCF = Pyramid((64, 256, 256), (16, 64, 64))
T2V = Pyramid((64, 288, 512), (8, 36, 64))
SMALL = Pyramid((8, 16, 32), (2, 4, 8))
SATURATING = Pyramid((8, 16, 16), (4, 4, 4))


@pytest.mark.parametrize(
    ("pyramid", "overlap", "counts"),
    [
        (UCF, NONE, [1, 8, 64]),
        (UCF, SPATIAL, [1, 18, 196]),
        (UCF, FULL, [1, 27, 343]),
        (T2V, NONE, [1, 8, 64, 512]),
        (T2V, SPATIAL, [1, 18, 196, 1800]),
        (T2V, FULL, [1, 27, 343, 3375]),
        (UCF, TIME, [1, 12, 112]),
    ],
)
def test_vii_tile_counts_of_the_paper(pyramid, overlap, counts):
    grids = [TileGrid(pyramid, level, overlap) for level in range(pyramid.num_levels)]
    assert [len(grid) for grid in grids] == counts
    for grid in grids:
        assert grid.offsets.shape == (len(grid), 3)
        assert len({tuple(o) for o in grid.offsets}) == len(grid)


def test_an_axis_that_stands_still_takes_no_overlap_at_level_0_and_keeps_its_windows_later():
    counts = [len(TileGrid(SATURATING, level, FULL)) for level in range(3)]
    assert counts == [1, 3 * 3 * 3, 3 * 7 * 7]


@pytest.mark.parametrize("window", ["uniform", "smooth"])
@pytest.mark.parametrize("overlap", ALL_OVERLAPS)
@pytest.mark.parametrize("pyramid", [SMALL, SATURATING])
def test_vi_a_translation_equivariant_denoiser_does_not_notice_the_tiles(pyramid, overlap, window):
    """Untiled result = tiled and merged result, for a denoiser that treats every place alike."""
    generator = torch.Generator().manual_seed(0)

    def denoiser(x):
        return x.square() - 3 * x * x.roll(1, dims=1)

    for level in range(pyramid.num_levels):
        grid = TileGrid(pyramid, level, overlap, window)
        # Whole numbers: sums of up to eight equal predictions are exact, and so is the comparison.
        canvas = torch.randint(-40, 41, (2, 3, *pyramid.extent(level)), generator=generator).float()
        merged = grid.merge(denoiser(grid.gather(canvas)))
        assert merged.shape == canvas.shape
        if window == "uniform":
            assert torch.equal(merged, denoiser(canvas))
        else:
            torch.testing.assert_close(merged, denoiser(canvas), atol=1e-3, rtol=1e-6)


def test_vi_twice_the_overlap_changes_nothing_for_such_a_denoiser():
    canvas = torch.randn(1, 3, *SMALL.extent(2), generator=torch.Generator().manual_seed(1))
    once, twice = (
        grid.merge(grid.gather(canvas).sin()) for grid in (TileGrid(SMALL, 2, NONE), TileGrid(SMALL, 2, FULL))
    )
    torch.testing.assert_close(once, twice, atol=2e-7, rtol=0)


def test_gather_lists_each_videos_tiles_together():
    grid = TileGrid(SMALL, 1, SPATIAL)
    canvas = torch.arange(2 * 3 * 4 * 8 * 16, dtype=torch.float32).view(2, 3, 4, 8, 16)
    tiles = grid.gather(canvas)
    assert tiles.shape == (2 * len(grid), 3, 2, 4, 8)
    for video, (n, (t, h, w)) in itertools.product(range(2), enumerate(grid.offsets)):
        expected = canvas[video, :, t : t + 2, h : h + 4, w : w + 8]
        assert torch.equal(tiles[video * len(grid) + n], expected)


def test_overlapping_predictions_are_averaged_with_equal_weight():
    grid = TileGrid(Pyramid((1, 1, 8), (1, 1, 4)), 1, SPATIAL)
    assert grid.starts[2] == (0, 2, 4)
    tiles = torch.stack([torch.full((1, 1, 1, 4), float(v)) for v in (1, 2, 6)])
    assert grid.merge(tiles).flatten().tolist() == [1, 1, 1.5, 1.5, 4, 4, 6, 6]


def test_smooth_windows_sum_to_one_and_fall_towards_inner_borders_only():
    grid = TileGrid(Pyramid((1, 1, 32), (1, 1, 8)), 2, SPATIAL, "smooth")
    torch.testing.assert_close(grid.coverage, torch.ones_like(grid.coverage))
    first, middle, last = grid.tile_weights[0, 0, 0], grid.tile_weights[3, 0, 0], grid.tile_weights[-1, 0, 0]
    assert first[:4].tolist() == [1.0] * 4
    assert last[4:].tolist() == [1.0] * 4
    assert (middle[:4].diff() > 0).all()
    assert (middle[4:].diff() < 0).all()
    assert (grid.tile_weights > 0).all()


@pytest.mark.parametrize("overlap", ALL_OVERLAPS)
@pytest.mark.parametrize("pyramid", [UCF, T2V, SMALL, SATURATING])
def test_every_tile_has_a_containing_parent_and_it_is_the_nearest(pyramid, overlap):
    rng = np.random.default_rng(0)
    for level in range(1, pyramid.num_levels):
        fine, coarse = TileGrid(pyramid, level, overlap), TileGrid(pyramid, level - 1, overlap)
        parents = fine.parents(coarse)
        assert parents.shape == (len(fine),)
        ratio, part = np.array(pyramid.ratio(level)), np.array(pyramid.patch)
        for n in rng.choice(len(fine), min(len(fine), 40), replace=False):
            tile = fine.offsets[n]
            holders = [m for m, o in enumerate(coarse.offsets) if pyramid.contains(level, tuple(o), tuple(tile))]
            assert parents[n] in holders
            miss = [np.abs(2 * tile + part - ratio * (2 * coarse.offsets[m] + part)).sum() for m in holders]
            chosen = np.abs(2 * tile + part - ratio * (2 * coarse.offsets[parents[n]] + part)).sum()
            assert chosen == min(miss)


def test_children_with_more_overlap_than_their_parents_are_refused():
    with pytest.raises(ConfigError, match="no containing tile") as error:
        TileGrid(SMALL, 2, SPATIAL).parents(TileGrid(SMALL, 1, NONE))
    assert "same overlap" in error.value.hint


def test_an_odd_side_cannot_overlap_by_half():
    odd = Pyramid((2, 6, 8), (1, 3, 4))
    assert len(TileGrid(odd, 1, NONE)) == 8
    with pytest.raises(ConfigError, match="3"):
        len(TileGrid(odd, 1, SPATIAL))


def alternating(pyramid, level, overlap=SPATIAL, window="uniform"):
    return TileGrid(pyramid, level, overlap, window).phases()


@pytest.mark.parametrize(
    ("level", "counts"),
    [(1, (2 * 2 * 2, 2 * 3 * 3)), (2, (4 * 4 * 4, 4 * 5 * 5)), (3, (8 * 8 * 8, 8 * 9 * 9))],
)
def test_phases_take_few_tiles(level, counts):
    assert tuple(len(grid) for grid in alternating(T2V, level)) == counts


def test_the_odd_phase_is_shifted_by_half_a_patch_with_whole_patches_at_the_borders():
    even, odd = alternating(Pyramid((1, 1, 32), (1, 1, 8)), 2)
    assert even.starts[2] == (0, 8, 16, 24)
    assert odd.starts[2] == (0, 4, 12, 20, 24)
    assert odd.starts[:2] == ((0,), (0,))


@pytest.mark.parametrize("window", ["uniform", "smooth"])
@pytest.mark.parametrize("overlap", [SPATIAL, TIME, FULL])
@pytest.mark.parametrize("pyramid", [SMALL, SATURATING])
def test_a_translation_equivariant_denoiser_does_not_notice_the_phases(pyramid, overlap, window):
    """Steps that alternate between phases give what steps on the untiled canvas give; each phase covers it."""

    def denoiser(x):
        return (x.square() - 3 * x * x.roll(1, dims=1)).remainder(41)

    for level in range(pyramid.num_levels):
        tiled = untiled = torch.randint(-40, 41, (2, 3, *pyramid.extent(level))).float()
        for step in range(4):
            grid = alternating(pyramid, level, overlap, window)[step % 2]
            assert (grid.coverage > 0).all()
            untiled = denoiser(untiled)
            tiled = grid.merge(denoiser(grid.gather(tiled))).round()
        assert torch.equal(tiled, untiled)


@pytest.mark.parametrize("overlap", [SPATIAL, TIME, FULL])
@pytest.mark.parametrize("pyramid", [UCF, T2V, SMALL, SATURATING])
def test_tiles_of_every_phase_have_a_containing_parent_and_are_tiles_of_the_whole_grid(pyramid, overlap):
    for level in range(1, pyramid.num_levels):
        coarser, whole = TileGrid(pyramid, level - 1, overlap), TileGrid(pyramid, level, overlap)
        known = {tuple(o) for o in whole.offsets}
        found = set()
        for grid in alternating(pyramid, level, overlap):
            for tile, parent in zip(grid.offsets, grid.parents(coarser), strict=True):
                assert pyramid.contains(level, tuple(coarser.offsets[parent]), tuple(tile))
            found |= {tuple(o) for o in grid.offsets}
        assert found <= known


def test_the_first_frames_have_the_first_tiles_and_a_canvas_that_ends_with_them():
    whole = TileGrid(UCF, 2, SPATIAL)
    first = TileGrid(UCF, 2, SPATIAL, frames=17)
    assert first.extent == (32, 256, 256)
    assert len(first) == 2 * first.per_time == 2 * whole.per_time
    assert np.array_equal(first.offsets, whole.offsets[: len(first)])
    canvas = torch.randn(1, 1, *whole.extent, generator=torch.Generator().manual_seed(0))
    part = first.merge(first.gather(canvas[:, :, :32]).square())
    assert torch.equal(part, whole.merge(whole.gather(canvas).square())[:, :, :32])


def test_some_rows_are_gathered_like_all():
    for grid in (TileGrid(SMALL, 2, FULL), *alternating(SMALL, 2, FULL)):
        canvas = torch.randn(2, 3, *SMALL.extent(2))
        rows = torch.tensor([0, len(grid) - 1, len(grid), 2 * len(grid) - 1, 1, 1])
        assert torch.equal(grid.gather_rows(canvas, rows), grid.gather(canvas)[rows])
