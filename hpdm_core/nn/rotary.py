"""Rotary positions: attention that knows where its tokens are from angles instead of added vectors.

A head of width E is E / 2 pairs of numbers; pair i of a token is turned by an angle that grows with the
token's position, so that a product of query and key depends on their distance (Su et al. 2021).

Shapes: B batch, N tokens, D width, I inner width (heads x head width), P pairs of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hpdm_core.nn.attention import attend

BASE = 10_000.0
"""Ratio of the fastest to the slowest turn along a line."""

HIGHEST = 5.0
"""Fastest turn on a grid, in half turns per unit of a coordinate that runs from -1 to 1."""

MAX_ROWS = 65_535
"""The longest batch that CUDA's fused attention kernels launch; axial attention makes longer ones."""


def line_angles(length: int, head_dim: int, device: torch.device) -> Tensor:
    """Angles [N, P] in radians of `length` points one unit apart; frequencies from 1 down to 1 / BASE."""
    pairs = torch.arange(head_dim // 2, device=device) * (2 / head_dim)
    return torch.arange(length, device=device)[:, None] * BASE**-pairs


def grid_angles(height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Angles [N, P] of a grid, row by row: half of the pairs turn with the row, half with the column.

    Coordinates run from -1 to 1 on both axes; frequencies are log-spaced from 1 to HIGHEST half turns.
    """
    rates = math.pi * torch.logspace(0.0, math.log2(HIGHEST), head_dim // 4, base=2.0, device=device)
    rows, columns = (torch.linspace(-1.0, 1.0, n, device=device)[:, None] * rates for n in (height, width))
    shape = (height, width, head_dim // 4)
    both = torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], dim=-1)
    return both.flatten(0, 1)


def rotate(x_BNI: Tensor, angles_NP: Tensor) -> Tensor:
    """Turn every pair (2i, 2i + 1) of every head of x by its token's angle i."""
    pairs = x_BNI.float().unflatten(-1, (-1, angles_NP.shape[-1], 2))
    cos, sin = angles_NP.cos()[:, None], angles_NP.sin()[:, None]
    a, b = pairs.unbind(-1)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned.flatten(2).to(x_BNI.dtype)


class HeadAttention(nn.Module):
    """Self-attention whose inner width is its own: `heads` of `head_dim`, whatever the width of its tokens.

    Queries, keys and values have no bias. With angles, queries and keys are turned by them.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x_BND: Tensor, angles_NP: Tensor | None = None) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        if len(x_BND) > MAX_ROWS:
            return torch.cat([self(part, angles_NP) for part in x_BND.split(MAX_ROWS)])
        q, k, v = self.qkv(x_BND).chunk(3, dim=-1)
        if angles_NP is not None:
            q, k = rotate(q, angles_NP), rotate(k, angles_NP)
        return self.out(attend(q, k, v, self.head_dim))
