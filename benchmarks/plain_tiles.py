"""The straightforward way to denoise a tiled canvas, to compare against: one tile after another in a loop.

It gives what the cascade gives, to rounding; its fusion terms are cached as the cascade's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from hpdm_core.families.hpdm.branch import Branch
from hpdm_core.pyramid.extract import crop
from hpdm_core.pyramid.tiling import TileGrid


def denoise(branch: Branch, canvas_BCTHW: Tensor, sigma: float, grid: TileGrid) -> Tensor:
    """The clean canvas, as `Branch.denoise` makes it."""
    tiles, size = branch.tiles[grid], grid.pyramid.patch
    total, weight = torch.zeros_like(canvas_BCTHW), torch.zeros_like(canvas_BCTHW)
    for video in range(len(canvas_BCTHW)):
        for number, offset in enumerate(grid.offsets):
            row = torch.tensor([video * len(grid) + number], device=canvas_BCTHW.device)
            noisy = crop(canvas_BCTHW[video : video + 1], tuple(offset), size)
            clean, _ = branch._call(tiles, noisy, row, sigma)
            share = grid.tile_weights[number].to(clean)
            crop(total[video : video + 1], tuple(offset), size).add_(clean * share)
            crop(weight[video : video + 1], tuple(offset), size).add_(share)
    return total / weight


@contextmanager
def plain_tiles() -> Iterator[None]:
    """Inside, cascades denoise their tiles one by one."""
    with patch.object(Branch, "denoise", denoise):
        yield
