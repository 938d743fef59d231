"""The joint denoiser: all levels through shared blocks, fine levels through fewer (HPDM §3.2, §3.3).

Levels ride in front of the batch and weights are shared between them; latents are separate per level,
from one learned start, so that nothing flows from fine to coarse. Block b works on the first
`levels_per_block[b]` levels; a level that skips early blocks enters at its first block with fresh latents.

Shapes: L levels, B batch, C channels, T H W frames and pixels, N tokens, D token width, K latents,
Z latent width, M condition tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpdm_core.config.schema import Extent
from hpdm_core.families.hpdm.config import HpdmModel
from hpdm_core.families.hpdm.context import (
    Fusion,
    Maps,
    context_maps,
    coordinate_grids,
    mean_context,
    shallow_context,
)
from hpdm_core.families.hpdm.rin import RinBlock
from hpdm_core.families.hpdm.tokenizer import detokenize, tokenize
from hpdm_core.nn.attention import feed_forward, init_linear_, layer_norm
from hpdm_core.nn.embeddings import ScalarEmbedding, place_sinusoids
from hpdm_core.nn.normed import normed_linear
from hpdm_core.nn.precision import to_residual

CHANNELS = 3


class Nested(NamedTuple):
    """Where the patches of a joint pass lie: interpolation matrices per (fine, coarse) pair, token positions."""

    maps: Maps
    coordinates_LBN3: Tensor


class Stem(nn.Module):
    """Cut pixels to tokens: linear, norm, plus learned position and level."""

    def __init__(self, num_inputs: int, grid: Extent, num_levels: int, dim: int, position_init: str) -> None:
        super().__init__()
        self.tokenize, self.norm = nn.Linear(num_inputs, dim), layer_norm(dim)
        self.position = nn.Parameter(torch.empty(math.prod(grid), dim))
        self.level = nn.Parameter(torch.empty(num_levels, dim))
        init_linear_(self.tokenize)
        # Without a bias the norm would make tokens of z and of 2 z the same: a token's brightness would be lost.
        nn.init.normal_(self.tokenize.bias)
        nn.init.normal_(self.position, std=0.02)
        nn.init.normal_(self.level, std=0.02)
        if position_init == "sinusoids":
            with torch.no_grad():
                self.position.add_(place_sinusoids(grid, dim).to(self.position))

    def forward(self, pixels_LBNE: Tensor, first: int) -> Tensor:
        """Tokens [L, B, N, D] of the levels `first`, `first` + 1, …; summed in fp32."""
        x = self.norm(self.tokenize(pixels_LBNE)).float()
        return to_residual(x + self.position + self.level[first : first + len(x), None, None])


class Head(nn.Module):
    """Tokens back to pixels: norm, linear. A small start keeps the first steps calm; zeros would stall LAMB."""

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.norm, self.detokenize = layer_norm(dim), nn.Linear(dim, num_outputs)
        nn.init.normal_(self.detokenize.weight, std=0.02 / math.sqrt(dim))
        nn.init.zeros_(self.detokenize.bias)

    def forward(self, x_LBND: Tensor) -> Tensor:
        """fp32 [L, B, N, E]."""
        return normed_linear(self.norm, self.detokenize, x_LBND).float()


class FusedBlock(nn.Module):
    """Deep context fusion followed by a RIN block: the unit that is compiled, sharded and counted."""

    def __init__(self, config: HpdmModel, grid: Extent, *, fuses: bool) -> None:
        super().__init__()
        self.grid, self.deep, self.gradient = grid, config.fusion == "deep", config.context_gradient
        self.fusion = Fusion(config) if fuses else None
        self.rin = RinBlock(config)

    def forward(
        self,
        x_LBND: Tensor,
        z_LBKZ: Tensor,
        condition_LBMD: Tensor,
        nested: Nested | None = None,
        term_BND: Tensor | None = None,
        *,
        mask_LBM: Tensor | None = None,
        fuse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """New tokens and latents of the first L levels together (`nested`), or of one level alone.

        Together, each level above 0 is fused with what the coarser ones hold before this block. Alone, a
        level is fused (`fuse`) with its ready-made `term_BND`.
        """
        levels, batch = x_LBND.shape[:2]
        if nested is not None and self.fusion is not None and levels > 1:
            x_LBND = torch.cat([x_LBND[:1], self._fuse_levels(x_LBND, nested)])
        elif fuse and self.fusion is not None:
            x_LBND = self.fusion(x_LBND, term_BND)
        mask = None if mask_LBM is None else mask_LBM.flatten(0, 1)
        x, z = self.rin(x_LBND.flatten(0, 1), z_LBKZ.flatten(0, 1), condition_LBMD.flatten(0, 1), mask)
        return x.unflatten(0, (levels, batch)), z.unflatten(0, (levels, batch))

    def _fuse_levels(self, x_LBND: Tensor, nested: Nested) -> Tensor:
        fusion: Fusion = self.fusion  # type: ignore[assignment]
        context = mean_context(x_LBND, nested.maps, self.grid, gradient=self.gradient) if self.deep else None
        return fusion(x_LBND[1:], fusion.context_term(context, nested.coordinates_LBN3[1 : len(x_LBND)]))


@dataclass
class LevelOutput:
    """What one level's pass returns: the prediction and its latents, or block inputs kept for finer levels."""

    output: Tensor | None
    latents: Tensor
    features: dict[int, Tensor]


class HierarchicalDenoiser(nn.Module):
    """The network F of scaled EDM for every level of a patch pyramid."""

    def __init__(self, config: HpdmModel) -> None:
        super().__init__()
        self.config, self.pyramid = config, config.pyramid
        self.grid: Extent = tuple(p // t for p, t in zip(config.patch, config.token, strict=True))  # type: ignore[assignment]
        d, z, levels = config.token_dim, config.latent_dim, self.pyramid.num_levels
        pixels = math.prod(config.token) * CHANNELS
        inputs = pixels * (2 if config.fusion == "shallow" else 1)
        self.stem = Stem(inputs, self.grid, levels, d, config.position_init)
        self.latent_start = nn.Parameter(torch.empty(config.num_latents, z))
        self.noise = ScalarEmbedding(d)
        self.condition_norm = layer_norm(d)
        self.blocks = nn.ModuleList(FusedBlock(config, self.grid, fuses=n > 1) for n in config.levels_per_block)
        self.head = Head(d, pixels)
        # As large as what they read: the condition, read first, is the same for all, and would drown what tells
        # small latents apart. Alike, they read alike, and a block passes on one mean of all tokens.
        nn.init.normal_(self.latent_start)
        init_linear_(self.noise)
        for block in self.blocks:
            init_linear_(block.rin)  # type: ignore[arg-type]
        if config.self_conditioning > 0:
            self.latent_mlp, self.latent_norm = feed_forward(z, config.mlp_ratio), layer_norm(z)
            init_linear_(self.latent_mlp)
            nn.init.zeros_(self.latent_norm.weight)

    def forward(
        self,
        z_LBCTHW: Tensor,
        noise_LB: Tensor,
        offsets_BL3: Tensor,
        condition_BMD: Tensor | None,
        latents_LBKZ: Tensor | None = None,
        *,
        mask_BM: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predictions [L, B, C, T, H, W] and final latents [L, B, K, Z] for nested patches.

        z: network input (c_in already applied); noise: the schedule's coordinate of each sigma;
        offsets: int64, each level's on its own grid; condition: extra tokens per row, or None; mask: those of
        them that count, None for all. L may be fewer than the model's levels: the coarsest ones.
        """
        config, levels, batch = self.config, *z_LBCTHW.shape[:2]
        x = self._embed(z_LBCTHW, self._shallow(z_LBCTHW, offsets_BL3))
        z = self._start(latents_LBKZ, levels, batch)
        y, mask = self._condition(noise_LB, condition_BMD), _with_noise(mask_BM, levels)
        nested = Nested(
            context_maps(self.pyramid, offsets_BL3, config.token) if config.fusion == "deep" else {},
            coordinate_grids(self.pyramid, offsets_BL3, config.token),
        )
        loads = [min(load, levels) for load in config.levels_per_block]
        entering = [now - before for before, now in itertools.pairwise((0, *loads))]
        active_x, active_z = x[:0], z[:0]
        # Split once: the gradient of each slice would be as large as the whole stack.
        for block, load, new_x, new_z in zip(self.blocks, loads, x.split(entering), z.split(entering), strict=True):
            if len(new_x):
                active_x, active_z = torch.cat([active_x, new_x]), torch.cat([active_z, new_z])
            told = None if mask is None else mask[:load]
            active_x, active_z = block(active_x, active_z, y[:load], nested, mask_LBM=told)
        return self._output(active_x), active_z

    def level_forward(
        self,
        level: int,
        z_BCTHW: Tensor,
        noise_B: Tensor,
        terms: Mapping[int, Tensor],
        condition_BMD: Tensor | None,
        *,
        mask_BM: Tensor | None = None,
        shallow_BCTHW: Tensor | None = None,
        latents_BKZ: Tensor | None = None,
        keep: tuple[int, ...] = (),
    ) -> LevelOutput:
        """One level alone, its context given as fusion terms per block (`fusion_term`): sampling's fast path.

        keep: blocks whose inputs to return, as context for finer levels; the pass ends at the last of them, and
        predicts nothing.
        """
        x = self._embed(z_BCTHW[None], None if shallow_BCTHW is None else shallow_BCTHW[None], first=level)
        z = self._start(None if latents_BKZ is None else latents_BKZ[None], 1, len(z_BCTHW))
        y, mask = self._condition(noise_B[None], condition_BMD), _with_noise(mask_BM, 1)
        features: dict[int, Tensor] = {}
        for b in range(self.config.first_blocks[level], len(self.blocks)):
            if b in keep:
                features[b] = x[0]
                if b == max(keep):
                    return LevelOutput(None, z[0], features)
            x, z = self.blocks[b](x, z, y, term_BND=terms.get(b), mask_LBM=mask, fuse=level > 0)
        return LevelOutput(self._output(x)[0], z[0], features)

    def fusion_term(self, block: int, context_BND: Tensor | None, coordinates_BN3: Tensor) -> Tensor | None:
        """The cacheable part of block `block`'s fusion: W_context context + W_position position."""
        fusion: Fusion = self.blocks[block].fusion  # type: ignore[assignment]
        return fusion.context_term(context_BND, coordinates_BN3)

    def _embed(self, z_LBCTHW: Tensor, shallow_LBCTHW: Tensor | None, first: int = 0) -> Tensor:
        """Tokens [L, B, N, D] of the levels `first`, `first` + 1, …"""
        pixels = tokenize(z_LBCTHW.flatten(0, 1), self.config.token)
        if shallow_LBCTHW is not None:
            pixels = torch.cat([pixels, tokenize(shallow_LBCTHW.flatten(0, 1), self.config.token)], -1)
        return self.stem(pixels.unflatten(0, z_LBCTHW.shape[:2]), first)

    def _shallow(self, z_LBCTHW: Tensor, offsets_BL3: Tensor) -> Tensor | None:
        """The shallow baseline's extra input: each level's view of the one before; zeros for level 0."""
        if self.config.fusion != "shallow":
            return None
        aligned = [torch.zeros_like(z_LBCTHW[0])]
        for level in range(1, len(z_LBCTHW)):
            child, parent = (level, offsets_BL3[:, level]), (level - 1, offsets_BL3[:, level - 1])
            aligned.append(shallow_context(self.pyramid, child, parent, z_LBCTHW[level - 1]))
        return torch.stack(aligned)

    def _start(self, latents_LBKZ: Tensor | None, levels: int, batch: int) -> Tensor:
        """Initial latents [L, B, K, Z]; with self-conditioning, Z_start + LN(Z' + MLP(Z')) (RIN)."""
        start = to_residual(self.latent_start).expand(levels, batch, -1, -1)
        if self.config.self_conditioning == 0:
            return start
        previous = torch.zeros_like(start) if latents_LBKZ is None else latents_LBKZ
        return start + self.latent_norm(previous + self.latent_mlp(previous))

    def _condition(self, noise_LB: Tensor, condition_BMD: Tensor | None) -> Tensor:
        """Condition tokens [L, B, 1 + M, D]: the noise level, then class or text."""
        levels, batch = noise_LB.shape
        tokens = self.noise(noise_LB.flatten()).unflatten(0, (levels, batch))[:, :, None]
        if condition_BMD is not None:
            tokens = torch.cat([tokens, condition_BMD.expand(levels, -1, -1, -1).to(tokens.dtype)], dim=2)
        return self.condition_norm(tokens)

    def _output(self, x_LBND: Tensor) -> Tensor:
        """Predictions [L, B, C, T, H, W] in fp32."""
        pixels = self.head(x_LBND)
        rows = detokenize(pixels.flatten(0, 1), self.config.patch, self.config.token)
        return rows.unflatten(0, pixels.shape[:2])


def _with_noise(mask_BM: Tensor | None, levels: int) -> Tensor | None:
    """The mask [L, B, 1 + M] of all condition tokens: the noise level always counts."""
    if mask_BM is None:
        return None
    return torch.cat([torch.ones_like(mask_BM[:, :1]), mask_BM], dim=1).expand(levels, -1, -1)
