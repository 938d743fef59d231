"""HPDM's blocks as a first reading of the paper would write them: the baseline that speed is measured against.

The same weights and the same map, computed literally: the context of each level by trilinear `grid_sample` from every
coarser one (eq. 8), one linear layer on [own ; context ; position] (eq. 9).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hpdm_core.families.base import Family
from hpdm_core.families.hpdm.context import Maps
from hpdm_core.families.hpdm.denoiser import FusedBlock, Nested
from hpdm_core.families.hpdm.family import HpdmFamily
from hpdm_core.pyramid.coords import interpolate


class PlainBlock(FusedBlock):
    """A `FusedBlock` whose fusion is the literal one."""

    def _fuse_levels(self, x_LBND: Tensor, nested: Nested) -> Tensor:
        fusion = self.fusion
        assert fusion is not None
        assert fusion.context is not None
        assert fusion.position is not None
        weight = torch.cat([fusion.own.weight, fusion.context.weight, fusion.position.T], dim=1)
        fused = []
        for child in range(1, len(x_LBND)):
            sampled = [self._sample(x_LBND[k], nested.maps, child, k) for k in range(child)]
            inputs = [x_LBND[child], torch.stack(sampled).mean(0), nested.coordinates_LBN3[child]]
            fused.append(F.linear(torch.cat([t.float() for t in inputs], dim=-1), weight, fusion.own.bias).float())
        return torch.stack(fused)

    def _sample(self, features_BND: Tensor, maps: Maps, child: int, parent: int) -> Tensor:
        """`grid_sample` of the parent's features at the child's tokens, [B, N, D]."""
        volume = features_BND.transpose(1, 2).unflatten(2, self.grid).float()
        matrices, device = maps[child, parent], volume.device
        with torch.autocast(device.type, enabled=False):
            # Interpolated, the tokens' indices (t, h, w) are the fractional indices that are read.
            index_N3 = torch.cartesian_prod(*(torch.arange(n, device=device, dtype=torch.float32) for n in self.grid))
            read_BN3 = interpolate(index_N3.expand(len(volume), -1, -1).contiguous(), matrices, self.grid)
            last = torch.tensor([max(n - 1, 1) for n in self.grid], device=device)
            places = (2 * read_BN3 / last - 1).flip(-1).unflatten(1, self.grid)
        sampled = F.grid_sample(volume, places, mode="bilinear", padding_mode="border", align_corners=True)
        return sampled.flatten(2).transpose(1, 2)


def make_plain(family: Family) -> None:
    """Let every block of an HPDM `family` compute its fusion literally; weights and names stay."""
    assert isinstance(family, HpdmFamily)
    for block in family.denoiser.blocks:
        block.__class__ = PlainBlock
