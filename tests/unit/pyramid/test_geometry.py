"""The pyramid's integers: growth, nesting (structural test iv), centred chains, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdm_core.errors import ConfigError
from hpdm_core.pyramid.geometry import Pyramid

UCF = Pyramid((64, 256, 256), (16, 64, 64))
T2V = Pyramid((64, 288, 512), (8, 36, 64))
SATURATING = Pyramid((64, 512, 512), (16, 64, 64))


@st.composite
def pyramids(draw):
    """Any pyramid: odd and even patches, axes that grow by different powers of two."""
    patch = tuple(draw(st.integers(1, 9)) for _ in range(3))
    doublings = tuple(draw(st.integers(0, 4)) for _ in range(3))
    return Pyramid(tuple(p << d for p, d in zip(patch, doublings, strict=True)), patch)


def window(pyramid, level, offset):
    """Lowest and highest edge of a patch in finest units, per axis."""
    step = np.array(pyramid.step(level))
    low = np.array(offset) * step
    return low, low + np.array(pyramid.patch) * step


def test_levels_of_the_paper():
    assert [UCF.extent(level) for level in range(3)] == [(16, 64, 64), (32, 128, 128), (64, 256, 256)]
    assert [T2V.extent(level) for level in range(4)] == [(8, 36, 64), (16, 72, 128), (32, 144, 256), (64, 288, 512)]
    assert [UCF.step(level) for level in range(3)] == [(4, 4, 4), (2, 2, 2), (1, 1, 1)]


def test_an_axis_that_has_reached_its_extent_stands_still():
    assert SATURATING.num_levels == 4
    assert [SATURATING.extent(level)[0] for level in range(4)] == [16, 32, 64, 64]
    assert SATURATING.ratio(3) == (1, 2, 2)
    one_k = Pyramid((16, 576, 1024), (16, 72, 128))
    assert [one_k.extent(level) for level in range(4)][-2:] == [(16, 288, 512), (16, 576, 1024)]
    assert Pyramid((4, 8, 8), (4, 8, 8)).num_levels == 1


@settings(deadline=None, max_examples=150)
@given(pyramids(), st.integers(0, 2**32))
def test_iv_every_patch_lies_inside_every_coarser_patch(pyramid, seed):
    offsets = pyramid.draw_offsets(np.random.default_rng(seed))
    assert offsets.shape == (pyramid.num_levels, 3)
    assert offsets.dtype == np.int64
    assert (offsets[0] == 0).all()
    for fine in range(pyramid.num_levels):
        low, high = window(pyramid, fine, offsets[fine])
        assert (low >= 0).all()
        assert (high <= pyramid.video).all()
        for coarse in range(fine):
            coarse_low, coarse_high = window(pyramid, coarse, offsets[coarse])
            assert (coarse_low <= low).all()
            assert (high <= coarse_high).all()
        if fine:
            assert pyramid.contains(fine, tuple(offsets[fine - 1]), tuple(offsets[fine]))


def test_offsets_are_uniform_inside_the_parent_and_axes_are_independent():
    pyramid = Pyramid((8, 8, 8), (4, 4, 4))
    rng = np.random.default_rng(0)
    drawn = np.stack([pyramid.draw_offsets(rng)[1] for _ in range(20_000)])
    for axis in range(3):
        share = np.bincount(drawn[:, axis], minlength=5) / len(drawn)
        np.testing.assert_allclose(share, 0.2, atol=0.015)
    correlation = np.corrcoef(drawn.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.03


@settings(deadline=None, max_examples=150)
@given(pyramids(), st.data())
def test_the_centred_chain_contains_the_patch_and_centres_it(pyramid, data):
    level = data.draw(st.integers(0, pyramid.num_levels - 1))
    extent = pyramid.extent(level)
    offset = tuple(data.draw(st.integers(0, e - p)) for e, p in zip(extent, pyramid.patch, strict=True))
    chain = pyramid.parent_chain(level, offset)
    assert tuple(chain[-1]) == offset
    for fine in range(1, level + 1):
        parent, child = chain[fine - 1], chain[fine]
        low, high = window(pyramid, fine, child)
        parent_low, parent_high = window(pyramid, fine - 1, parent)
        assert pyramid.contains(fine, tuple(parent), tuple(child))
        for axis in range(3):
            # No other position that is inside the canvas and contains the child is closer by a whole unit.
            miss = abs((low + high - parent_low - parent_high)[axis])
            step = pyramid.step(fine - 1)[axis]
            for other in (parent[axis] - 1, parent[axis] + 1):
                moved = np.array(parent)
                moved[axis] = other
                fits = 0 <= other <= (pyramid.extent(fine - 1)[axis] - pyramid.patch[axis])
                if fits and pyramid.contains(fine, tuple(moved), tuple(child)):
                    other_miss = abs(low[axis] + high[axis] - (2 * other + pyramid.patch[axis]) * step)
                    assert miss <= other_miss


@pytest.mark.parametrize(
    ("video", "patch"),
    [
        ((8, 30, 32), (2, 8, 8)),  # not a multiple
        ((8, 24, 32), (2, 8, 8)),  # a multiple, not a power of two
        ((8, 32, 4), (2, 8, 8)),  # smaller than the patch
        ((0, 32, 32), (2, 8, 8)),  # nothing
        ((8, 32, 32), (0, 8, 8)),
    ],
)
def test_impossible_pyramids_are_refused_with_the_nearest_extent(video, patch):
    with pytest.raises(ConfigError) as error:
        Pyramid(video, patch)
    assert "nearest possible" in error.value.hint


def test_the_hint_names_the_nearest_extent():
    with pytest.raises(ConfigError, match="height") as error:
        Pyramid((8, 30, 32), (2, 8, 8))
    assert "32" in error.value.hint


def test_sizes_choose_the_level_and_lengths_only_where_they_make_one_with_the_size():
    assert UCF.level_of(None, None) == 2
    assert UCF.level_of(None, (64, 64)) == 0
    assert UCF.level_of(64, (256, 256)) == 2
    # A length alone means the first frames of the finest level, also where a coarser one is as long.
    assert UCF.level_of(32, None) == 2
    assert UCF.level_of(16, (256, 256)) == 2
    assert SATURATING.level_of(64, None) == 3
    assert SATURATING.level_of(64, (256, 256)) == 2
    with pytest.raises(ConfigError, match="100x100") as error:
        UCF.level_of(None, (100, 100))
    assert "32 frames of 128x128" in error.value.hint


def test_levels_of_one_size_are_told_apart_by_their_length():
    slow = Pyramid((64, 32, 32), (8, 16, 16))
    assert [slow.extent(level)[0] for level in range(4)] == [8, 16, 32, 64]
    assert slow.level_of(16, (32, 32)) == 1
    assert slow.level_of(20, (32, 32)) == 3
    assert slow.level_of(16, None) == 3


@pytest.mark.parametrize(("frames", "size"), [(65, None), (33, (128, 128)), (17, (64, 64))])
def test_more_frames_than_a_level_has_are_refused_with_what_there_is(frames, size):
    with pytest.raises(ConfigError, match=f"cannot make {frames} frames") as error:
        UCF.level_of(frames, size)
    assert error.value.hint == "it makes up to 16 frames of 64x64, 32 frames of 128x128, 64 frames of 256x256"


def test_levels_outside_the_pyramid_are_refused():
    for level in (-1, 3):
        with pytest.raises(ConfigError, match="levels 0 to 2"):
            UCF.extent(level)
