"""Embeddings of scalars: noise levels as sinusoids.

Shapes: B batch, D width.
"""

from __future__ import annotations

import math

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


class ScalarEmbedding(nn.Module):
    """Sinusoids, then Linear, SiLU, Linear: one vector [B, dim] per scalar [B]."""

    def __init__(self, dim: int, num_sinusoids: int = 256) -> None:
        super().__init__()
        self.num_sinusoids = num_sinusoids
        self.project = nn.Sequential(nn.Linear(num_sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, values_B: Tensor) -> Tensor:
        """Embed scalars of order one."""
        return self.project(sinusoids(values_B, self.num_sinusoids))
