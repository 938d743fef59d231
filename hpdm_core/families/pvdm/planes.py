"""The geometry of a projected latent: a clip's grid of cells without time, without height, without width.

    hw   [h, w]   what stays when time is removed: content shared by all frames
    tw   [t, w]   height removed
    th   [t, h]   width removed

The three planes travel as one tensor [B, C, N] of N = hw + tw + th cells, in that order: O(HW + TW + TH)
numbers for a clip of T * H * W. Everything is derived from the grid (t, h, w).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.config.schema import Extent

PLANES = ("hw", "tw", "th")


@dataclass(frozen=True)
class Planes:
    """The planes of one grid of cells (t, h, w)."""

    grid: Extent

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each plane, in the order of `PLANES`."""
        t, h, w = self.grid
        return (h, w), (t, w), (t, h)

    @property
    def num_cells(self) -> int:
        """N, the cells of all three planes."""
        return sum(rows * columns for rows, columns in self.shapes)

    def split(self, z_BCN: Tensor) -> list[Tensor]:
        """The planes [B, C, rows, columns]."""
        return split_cells(z_BCN, self.shapes)


def split_cells(z_BCN: Tensor, shapes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """Cut N cells into planes of `shapes`, [B, C, rows, columns] each."""
    parts = z_BCN.split([rows * columns for rows, columns in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def join_cells(planes: list[Tensor]) -> Tensor:
    """The inverse of `split_cells`."""
    return torch.cat([plane.flatten(2) for plane in planes], dim=-1)
