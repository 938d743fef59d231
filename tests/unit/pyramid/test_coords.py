"""Token positions and the interpolation between levels (structural test iii), against pixels and grid_sample."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hpdm_core.pyramid.coords import (
    interpolate,
    interpolation_matrices,
    normalised_coordinates,
    token_positions,
    with_plane,
)
from hpdm_core.pyramid.extract import crop, level_video
from hpdm_core.pyramid.geometry import Pyramid

CASES = [
    (Pyramid((16, 64, 64), (4, 16, 16)), (1, 4, 4)),
    (Pyramid((16, 64, 64), (4, 16, 16)), (2, 2, 4)),
    (Pyramid((16, 96, 256), (8, 12, 32)), (1, 3, 4)),
    (Pyramid((8, 32, 32), (8, 4, 8)), (1, 1, 1)),  # time stands still, height grows more than width
]


def grid_of(pyramid, token):
    return tuple(p // t for p, t in zip(pyramid.patch, token, strict=True))


def offsets_of(pyramid, rows=4):
    rng = np.random.default_rng(3)
    return torch.from_numpy(np.stack([pyramid.draw_offsets(rng) for _ in range(rows)]))


def inside(pyramid, child, parent, token):
    """bool [B, n_t, n_h, n_w]: child tokens that do not overhang the parent's outermost token centres."""
    masks = []
    child_positions, parent_positions = (
        token_positions(pyramid, *child, token),
        token_positions(pyramid, *parent, token),
    )
    for mine, theirs in zip(child_positions, parent_positions, strict=True):
        masks.append((mine >= theirs[:, :1] - 1e-4) & (mine <= theirs[:, -1:] + 1e-4))
    t, h, w = masks
    return t[:, :, None, None] & h[:, None, :, None] & w[:, None, None, :]


def token_means(patches_BCTHW, token):
    """[B, N, C]: what an averaging tokenizer would say."""
    return F.avg_pool3d(patches_BCTHW, token).flatten(2).transpose(1, 2)


def pairs(pyramid):
    return [(child, parent) for child in range(1, pyramid.num_levels) for parent in range(child)]


@pytest.mark.parametrize(("pyramid", "token"), CASES)
def test_iii_a_coordinate_ramp_on_the_coarse_map_returns_the_fine_patchs_coordinates(pyramid, token):
    offsets = offsets_of(pyramid)
    for child, parent in pairs(pyramid):
        fine, coarse = (child, offsets[:, child]), (parent, offsets[:, parent])
        ramp = normalised_coordinates(pyramid, *coarse, token).flatten(1, 3)
        seen = interpolate(ramp, interpolation_matrices(pyramid, fine, coarse, token), grid_of(pyramid, token))
        own = normalised_coordinates(pyramid, *fine, token)
        mask = inside(pyramid, fine, coarse, token)
        assert mask.float().mean() > 0.15
        torch.testing.assert_close(seen.view_as(own)[mask], own[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pyramid", "token"), CASES)
@pytest.mark.parametrize("velocity", [(1.0, 0.0, 0.0), (0.0, 0.7, -0.3), (0.5, -0.2, 0.9)])
def test_iii_a_moving_ramp_in_pixels_agrees_at_true_frame_times(pyramid, token, velocity):
    """Paint a moving ramp on the finest video, cut real patches: coarse features land where the fine ones are."""
    t, h, w = (torch.arange(size, dtype=torch.float64) for size in pyramid.video)
    ramp = velocity[0] * t[:, None, None] + velocity[1] * h[:, None] + velocity[2] * w
    videos = [level_video(ramp[None, None], pyramid, level) for level in range(pyramid.num_levels)]
    offsets = offsets_of(pyramid)
    for child, parent in pairs(pyramid):
        cut = {
            level: torch.cat([crop(videos[level], tuple(o), pyramid.patch) for o in offsets[:, level].tolist()])
            for level in (child, parent)
        }
        fine, coarse = (child, offsets[:, child]), (parent, offsets[:, parent])
        matrices = interpolation_matrices(pyramid, fine, coarse, token)
        seen = interpolate(token_means(cut[parent], token), matrices, grid_of(pyramid, token))
        own = token_means(cut[child], token)
        mask = inside(pyramid, fine, coarse, token).flatten(1)
        torch.testing.assert_close(seen[mask], own[mask], atol=1e-3, rtol=0)


def test_window_centres_in_time_would_be_wrong():
    """The reason for true frame times: the usual pixel-centre rule misplaces strided frames by up to a frame."""
    pyramid, token = CASES[0]
    time_of = token_positions(pyramid, 0, torch.zeros(1, 3), token)[0][0]
    assert time_of.tolist() == [0.0, 4.0, 8.0, 12.0]
    assert token_positions(pyramid, 2, torch.tensor([[5, 0, 0]]), token)[0][0].tolist() == [5.0, 6.0, 7.0, 8.0]
    rows = token_positions(pyramid, 0, torch.zeros(1, 3), token)[1][0]
    assert rows.tolist() == [8.0, 24.0, 40.0, 56.0]
    fine, coarse = (2, torch.tensor([[4, 0, 0]])), (0, torch.zeros(1, 3, dtype=torch.int64))
    time_matrix = interpolation_matrices(pyramid, fine, coarse, token)[0][0]
    # Finest frames 4..7 between coarse frames at 4 and 8: frame 4 is exactly the coarse frame 1.
    expected = torch.tensor([[0, 1, 0, 0], [0, 0.75, 0.25, 0], [0, 0.5, 0.5, 0], [0, 0.25, 0.75, 0]])
    torch.testing.assert_close(time_matrix, expected)


@pytest.mark.parametrize(("pyramid", "token"), CASES)
def test_separable_interpolation_equals_grid_sample_in_space(pyramid, token):
    """Trilinear, align_corners=False, border padding: the paper's operator, where frames are not strided."""
    offsets, grid = offsets_of(pyramid), grid_of(pyramid, token)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(offsets), int(np.prod(grid)), 5, generator=generator)
    for child, parent in pairs(pyramid):
        fine, coarse = (child, offsets[:, child]), (parent, offsets[:, parent])
        matrices = interpolation_matrices(pyramid, fine, coarse, token)
        keep_time = torch.eye(grid[0]).expand(len(offsets), -1, -1)
        ours = interpolate(features, [keep_time, *matrices[1:]], grid)
        # Paper eq. 8, in the units of each level's own window: (delta_l - delta_k) / s_k and s_l / s_k.
        points = []
        for axis in (2, 1, 0):
            fine_step, coarse_step = pyramid.step(child)[axis], pyramid.step(parent)[axis]
            size = pyramid.patch[axis] * coarse_step
            shift = (offsets[:, child, axis] * fine_step - offsets[:, parent, axis] * coarse_step) / size
            centres = (torch.arange(grid[axis]) + 0.5) / grid[axis]
            scaled = shift[:, None] + fine_step / coarse_step * centres
            points.append((centres.expand_as(scaled) if axis == 0 else scaled) * 2 - 1)
        x, y, z = points
        shape = (len(offsets), *grid)
        where = torch.stack(
            [x[:, None, None, :].expand(shape), y[:, None, :, None].expand(shape), z[:, :, None, None].expand(shape)],
            -1,
        ).float()
        volume = features.transpose(1, 2).unflatten(2, grid)
        sampled = F.grid_sample(volume, where, mode="bilinear", padding_mode="border", align_corners=False)
        torch.testing.assert_close(ours, sampled.flatten(2).transpose(1, 2), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("pyramid", "token"), CASES)
def test_interpolation_rows_are_weights(pyramid, token):
    offsets = offsets_of(pyramid)
    for child, parent in pairs(pyramid):
        fine, coarse = (child, offsets[:, child]), (parent, offsets[:, parent])
        for matrix in interpolation_matrices(pyramid, fine, coarse, token):
            assert (matrix >= 0).all()
            torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1]))


@pytest.mark.parametrize(("pyramid", "token"), CASES)
def test_coordinates_lie_inside_the_video_and_are_symmetric_at_level_0(pyramid, token):
    offsets = offsets_of(pyramid)
    for level in range(pyramid.num_levels):
        grid = normalised_coordinates(pyramid, level, offsets[:, level], token)
        assert grid.shape == (len(offsets), *grid_of(pyramid, token), 3)
        assert grid.abs().max() < 1
    space = normalised_coordinates(pyramid, 0, offsets[:1, 0], token)[..., 1:]
    torch.testing.assert_close(space, -space.flip(2, 3))


def test_interpolation_keeps_the_dtype_of_the_features():
    pyramid, token = CASES[0]
    offsets = offsets_of(pyramid)
    matrices = interpolation_matrices(pyramid, (1, offsets[:, 1]), (0, offsets[:, 0]), token)
    features = torch.randn(len(offsets), 64, 3)
    half = interpolate(features.bfloat16(), matrices, grid_of(pyramid, token))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), interpolate(features, matrices, (4, 4, 4)), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("pyramid", "token"), CASES)
def test_one_matrix_for_the_plane_is_the_two_of_its_axes(pyramid, token):
    offsets, last, grid = offsets_of(pyramid), pyramid.num_levels - 1, grid_of(pyramid, token)
    matrices = interpolation_matrices(pyramid, (last, offsets[:, last]), (0, offsets[:, 0]), token)
    features = torch.randn(len(offsets), int(np.prod(grid)), 3)
    torch.testing.assert_close(interpolate(features, with_plane(matrices), grid), interpolate(features, matrices, grid))
