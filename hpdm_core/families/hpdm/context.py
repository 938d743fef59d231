"""Deep context fusion (HPDM §3.2): before each block, fine tokens hear from every coarser level.

    context_l = mean over k < l of interpolate(a_k at the place of patch l)              (eq. 7)
    x_l <- W [a_l ; context_l ; position_l] + bias, W in R^{d x (2d + 3)}                (eq. 9)

where a_k are block *inputs*, taken before the level's own fusion, so that all levels fuse at once. W is
kept as three products, own + context + position: the same map, several times faster than one ragged
matrix of 2d + 3 columns, and the last two can be cached per tile at sampling time.

Shapes: L levels, B batch, N tokens, D width; `...` stands for any leading axes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from hpdm_core.config.schema import Extent
from hpdm_core.families.hpdm.config import HpdmModel
from hpdm_core.nn.precision import to_residual
from hpdm_core.pyramid.coords import interpolate, interpolation_matrices, normalised_coordinates, with_plane
from hpdm_core.pyramid.geometry import Pyramid

Maps = dict[tuple[int, int], list[Tensor]]
"""(child level, parent level) to the interpolation matrices [B, n, n], as `interpolate` takes them."""


class Fusion(nn.Module):
    """The fusion linear of one block, shared by all levels above 0."""

    def __init__(self, config: HpdmModel) -> None:
        super().__init__()
        d = config.token_dim
        self.own = nn.Linear(d, d)
        self.context = nn.Linear(d, d, bias=False) if config.fusion == "deep" else None
        self.position = nn.Parameter(torch.empty(3, d)) if config.coordinates else None
        self.reset(config.fusion_init)

    def reset(self, init: Literal["default", "identity", "residual"]) -> None:
        """Like one linear layer of all the columns; or the identity on a_l, with the rest at zero or as before."""
        d = self.own.in_features
        bound = 1 / math.sqrt(d * (1 if self.context is None else 2) + (0 if self.position is None else 3))
        nn.init.zeros_(self.own.bias)
        if init == "default":
            nn.init.uniform_(self.own.weight, -bound, bound)
        else:
            nn.init.eye_(self.own.weight)
        others = [self.position] + ([self.context.weight] if self.context is not None else [])
        for weight in (w for w in others if w is not None):
            nn.init.zeros_(weight) if init == "identity" else nn.init.uniform_(weight, -bound, bound)

    def context_term(self, context: Tensor | None, coordinates: Tensor) -> Tensor | None:
        """The part of the output that does not depend on the tokens' own features, [..., N, D]."""
        term = None
        if self.position is not None:
            # A product with three rows, written as a sum: no ragged matrix multiplication.
            c = coordinates
            term = c[..., :1] * self.position[0] + c[..., 1:2] * self.position[1] + c[..., 2:] * self.position[2]
        if self.context is not None and context is not None:
            projected = self.context(context)
            term = projected if term is None else projected + term
        return term

    def forward(self, x: Tensor, term: Tensor | None) -> Tensor:
        """Fused tokens [..., N, D], from own features and `context_term`; summed in fp32."""
        own = self.own(x).float()
        return to_residual(own if term is None else own + term)


def context_maps(pyramid: Pyramid, offsets_BL3: Tensor, token: Extent) -> Maps:
    """The interpolation matrices of every (fine, coarse) pair of one nested patch set, in the form that is fast."""
    low_precision = torch.is_autocast_enabled(offsets_BL3.device.type)
    maps = {}
    for child in range(1, offsets_BL3.shape[1]):
        for parent in range(child):
            matrices = interpolation_matrices(
                pyramid, (child, offsets_BL3[:, child]), (parent, offsets_BL3[:, parent]), token
            )
            maps[child, parent] = with_plane(matrices) if low_precision else matrices
    return maps


def coordinate_grids(pyramid: Pyramid, offsets_BL3: Tensor, token: Extent) -> Tensor:
    """float32 [L, B, N, 3]: every token's position in the full video, in [-1, 1]."""
    return torch.stack(
        [
            normalised_coordinates(pyramid, level, offsets_BL3[:, level], token).flatten(1, 3)
            for level in range(offsets_BL3.shape[1])
        ]
    )


def mean_context(a_LBND: Tensor, maps: Maps, grid: Extent, *, gradient: bool) -> Tensor:
    """[L - 1, B, N, D]: for each level above 0, the mean of what all coarser levels hold at its place."""
    source = a_LBND if gradient else a_LBND.detach()
    contexts = []
    for child in range(1, len(a_LBND)):
        total = sum(interpolate(source[k], maps[child, k], grid) for k in range(child))
        contexts.append(total / child)
    return torch.stack(contexts)


def shallow_context(
    pyramid: Pyramid, child: tuple[int, Tensor], parent: tuple[int, Tensor], parent_BCTHW: Tensor
) -> Tensor:
    """The level before's pixels, trilinearly aligned to the child patch, [B, C, t, h, w] (the paper's baseline)."""
    grid = pyramid.patch
    matrices = interpolation_matrices(pyramid, child, parent, (1, 1, 1))
    pixels = parent_BCTHW.flatten(2).transpose(1, 2)
    aligned = interpolate(pixels, matrices, grid)
    return aligned.transpose(1, 2).reshape(parent_BCTHW.shape)
