"""Where tokens are: true positions in the finest video, and interpolation between levels.

Frames are strided, so frame i of a level with stride g sits at finest frame i * g, not at the centre of a
window of g frames; pixels are averaged, so pixel i of a level with pixel size g is centred at
(i + 1/2) * g. A token of several frames or pixels sits at their mean. Context interpolation (HPDM eq. 8)
uses these positions, and since windows are axis-aligned it is separable: one small matrix per axis
replaces a 5-D grid_sample (trilinear, border padding), several times faster and deterministic.

Shapes: B batch, n tokens along one axis of a patch, R' = (n_t, n_h, n_w).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpdm_core.config.schema import Extent
from hpdm_core.pyramid.geometry import Pyramid


def token_positions(pyramid: Pyramid, level: int, offsets_B3: Tensor, token: Extent) -> list[Tensor]:
    """Per axis, float32 [B, n]: finest frame index (time) or pixel coordinate (height, width) of each token."""
    positions = []
    for axis, (part, size, step) in enumerate(zip(pyramid.patch, token, pyramid.step(level), strict=True)):
        index = torch.arange(part // size, device=offsets_B3.device, dtype=torch.float32)
        centre = (index + 0.5) * size - (0.5 if axis == 0 else 0.0)
        positions.append((offsets_B3[:, axis, None].float() + centre) * step)
    return positions


def normalised_coordinates(pyramid: Pyramid, level: int, offsets_B3: Tensor, token: Extent) -> Tensor:
    """float32 [B, n_t, n_h, n_w, 3] in [-1, 1]: each token's (t, h, w) in the full video (spec §3.3, c_l)."""
    axes = []
    for axis, position in enumerate(token_positions(pyramid, level, offsets_B3, token)):
        centre = position + (0.5 if axis == 0 else 0.0)
        axes.append(2 * centre / pyramid.video[axis] - 1)
    t, h, w = axes
    shape = (len(offsets_B3), t.shape[1], h.shape[1], w.shape[1])
    grids = (t[:, :, None, None], h[:, None, :, None], w[:, None, None, :])
    return torch.stack([g.expand(shape) for g in grids], dim=-1)


def interpolation_matrices(
    pyramid: Pyramid,
    child: tuple[int, Tensor],
    parent: tuple[int, Tensor],
    token: Extent,
) -> list[Tensor]:
    """Per axis, float32 [B, n, n]: rows are the child's tokens as linear mixes of the parent's.

    `child` and `parent` are (level, offsets [B, 3]). Positions beyond the parent's outermost tokens take the
    nearest one (border padding).
    """
    child_level, child_offsets = child
    parent_level, parent_offsets = parent
    matrices = []
    positions = token_positions(pyramid, child_level, child_offsets, token)
    for axis, position in enumerate(positions):
        size, step = token[axis], pyramid.step(parent_level)[axis]
        num_tokens = pyramid.patch[axis] // size
        shift = 0.5 if axis == 0 else 0.0
        index = (position / step - parent_offsets[:, axis, None].float() + shift) / size - 0.5
        index = index.clamp(0, num_tokens - 1)
        nodes = torch.arange(num_tokens, device=position.device, dtype=torch.float32)
        matrices.append((1 - (index[..., None] - nodes).abs()).clamp_min(0))
    return matrices


def interpolate(features_BNC: Tensor, matrices: list[Tensor], grid: Extent) -> Tensor:
    """Trilinear samples [B, N, C] of a parent's token features [B, N, C] at the child's tokens.

    `grid` = (n_t, n_h, n_w), N their product. Width first, then height, then time: three batched products; or
    two, where `matrices` are those of time and of the whole plane (`with_plane`).
    """
    batch, num_tokens, channels = features_BNC.shape
    n_t, n_h, n_w = grid
    m_t, *m_space = (m.to(features_BNC.dtype) for m in matrices)
    if len(m_space) == 1:
        x = m_space[0][:, None] @ features_BNC.view(batch, n_t, n_h * n_w, channels)
    else:
        m_h, m_w = m_space
        x = m_w[:, None] @ features_BNC.view(batch, n_t * n_h, n_w, channels)
        x = m_h[:, None] @ x.view(batch, n_t, n_h, n_w * channels)
    x = m_t @ x.view(batch, n_t, n_h * n_w * channels)
    return x.view(batch, num_tokens, channels)


def with_plane(matrices: list[Tensor]) -> list[Tensor]:
    """[time, height x width]: the Kronecker product of the last two, [B, n_h n_w, n_h n_w].

    More arithmetic and one pass over the features less: faster where products are cheap, in bf16 on a GPU.
    """
    m_t, m_h, m_w = matrices
    plane = m_h[:, :, None, :, None] * m_w[:, None, :, None, :]
    return [m_t, plane.flatten(3, 4).flatten(1, 2)]
