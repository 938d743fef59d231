"""Embeddings of scalars and of places: noise levels and grid positions as sinusoids.

Shapes: B batch, N places, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def sinusoids(values_B: Tensor, dim: int, *, lowest: float = 1.0, highest: float = 1.0e3) -> Tensor:
    """float32 [B, dim], unit variance over phases: sines and cosines at log-spaced angular frequencies.

    `values` should be of order one; frequencies run from `lowest` to `highest` radians per unit.
    """
    half = dim // 2
    ramp = torch.linspace(math.log(lowest), math.log(highest), half, device=values_B.device)
    angles = values_B.float()[:, None] * ramp.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1) * math.sqrt(2)


def place_sinusoids(grid: Sequence[int], dim: int) -> Tensor:
    """float32 [N, dim] for the places of a grid, last axis fastest: an equal share of the width per axis, rest zero.

    Along each axis frequencies run from half a wave over the grid to a third of a wave per place.
    """
    share = dim // len(grid) // 2 * 2
    parts = []
    for axis, places in enumerate(grid):
        centres = (torch.arange(places) + 0.5) * (2 / places) - 1
        waves = sinusoids(centres, share, lowest=math.pi / 2, highest=max(math.pi * places / 3, math.pi / 2))
        shape = [1] * len(grid)
        shape[axis] = places
        parts.append(waves.reshape(*shape, share).expand(*grid, share))
    table = torch.zeros(*grid, dim)
    table[..., : share * len(grid)] = torch.cat(parts, dim=-1)
    return table.reshape(-1, dim)


class ScalarEmbedding(nn.Module):
    """Sinusoids, then Linear, SiLU, Linear: one vector [B, dim] per scalar [B]."""

    def __init__(self, dim: int, num_sinusoids: int = 256) -> None:
        super().__init__()
        self.num_sinusoids = num_sinusoids
        self.project = nn.Sequential(nn.Linear(num_sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, values_B: Tensor) -> Tensor:
        """Embed scalars of order one."""
        return self.project(sinusoids(values_B, self.num_sinusoids))
