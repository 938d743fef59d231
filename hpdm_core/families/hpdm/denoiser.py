"""The joint denoiser: all levels through shared blocks, fine levels through fewer (HPDM §3.2, §3.3).

Levels ride in front of the batch and weights are shared between them; latents are separate per level,
from one learned start, so that nothing flows from fine to coarse. Block b works on the first
`levels_per_block[b]` levels; a level that skips early blocks enters at its first block with fresh latents.

Shapes: L levels, B batch, C channels, T H W frames and pixels, N tokens, D token width, K latents,
Z latent width, M condition tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpdm_core.config.schema import Extent
from hpdm_core.families.hpdm.config import HpdmModel
from hpdm_core.families.hpdm.context import (
    Fusion,
    context_maps,
    coordinate_grids,
    mean_context,
    shallow_context,
)
from hpdm_core.families.hpdm.rin import RinBlock
from hpdm_core.families.hpdm.tokenizer import detokenize, tokenize
from hpdm_core.nn.attention import feed_forward, init_linear_, layer_norm
from hpdm_core.nn.embeddings import ScalarEmbedding

CHANNELS = 3


class FusedBlock(nn.Module):
    """Deep context fusion followed by a RIN block: the unit that is compiled, sharded and counted."""

    def __init__(self, config: HpdmModel, *, fuses: bool) -> None:
        super().__init__()
        self.fusion = Fusion(config) if fuses else None
        self.rin = RinBlock(config)

    def forward(
        self, x_RND: Tensor, z_RKZ: Tensor, condition_RMD: Tensor, term_FND: Tensor | None, num_unfused: int
    ) -> tuple[Tensor, Tensor]:
        """Fuse all rows but the first `num_unfused` (level 0 has no fusion) with their terms, then the RIN block."""
        if self.fusion is not None and num_unfused < len(x_RND):
            fused = self.fusion(x_RND[num_unfused:], term_FND)
            x_RND = torch.cat([x_RND[:num_unfused], fused]) if num_unfused else fused
        return self.rin(x_RND, z_RKZ, condition_RMD)


@dataclass
class LevelOutput:
    """What one level's pass returns: the prediction, its latents, and block inputs kept for finer levels."""

    output: Tensor
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
        self.tokenize = nn.Linear(pixels * (2 if config.fusion == "shallow" else 1), d)
        self.stem_norm = layer_norm(d)
        self.token_position = nn.Parameter(torch.empty(math.prod(self.grid), d))
        self.level_embedding = nn.Parameter(torch.empty(levels, d))
        self.latent_start = nn.Parameter(torch.empty(config.num_latents, z))
        self.noise = ScalarEmbedding(d)
        self.condition_norm = layer_norm(d)
        self.blocks = nn.ModuleList(FusedBlock(config, fuses=n > 1) for n in config.levels_per_block)
        self.output_norm, self.detokenize = layer_norm(d), nn.Linear(d, pixels)
        if config.self_conditioning > 0:
            self.latent_mlp = feed_forward(z, config.mlp_ratio)
            self.latent_norm = layer_norm(z)
        self._init()

    def _init(self) -> None:
        for module in (self.tokenize, self.noise, self.detokenize, *(b.rin for b in self.blocks)):  # type: ignore[union-attr]
            init_linear_(module)
        for parameter in (self.token_position, self.level_embedding, self.latent_start):
            nn.init.normal_(parameter, std=0.02)
        # A small output keeps the first steps calm; exact zeros would stall LAMB's trust ratio.
        nn.init.normal_(self.detokenize.weight, std=0.02 / math.sqrt(self.config.token_dim))
        if self.config.self_conditioning > 0:
            init_linear_(self.latent_mlp)
            nn.init.zeros_(self.latent_norm.weight)

    def forward(
        self,
        z_LBCTHW: Tensor,
        noise_LB: Tensor,
        offsets_BL3: Tensor,
        condition_BMD: Tensor | None,
        latents_LBKZ: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predictions [L, B, C, T, H, W] and final latents [L, B, K, Z] for nested patches.

        z: network input (c_in already applied); noise: the schedule's coordinate of each sigma;
        offsets: int64, each level's on its own grid; condition: extra tokens per row, or None. L may be
        fewer than the model's levels: the coarsest ones.
        """
        config, levels, batch = self.config, *z_LBCTHW.shape[:2]
        x = self._embed(z_LBCTHW, self._shallow(z_LBCTHW, offsets_BL3))
        z = self._start(latents_LBKZ, levels, batch)
        y = self._condition(noise_LB, condition_BMD)
        maps = context_maps(self.pyramid, offsets_BL3, config.token) if config.fusion == "deep" else {}
        coords = coordinate_grids(self.pyramid, offsets_BL3, config.token)
        active_x, active_z = x[:0], z[:0]
        for block, full_load in zip(self.blocks, config.levels_per_block, strict=True):
            load = min(full_load, levels)
            if load > len(active_x):
                active_x = torch.cat([active_x, x[len(active_x) : load]])
                active_z = torch.cat([active_z, z[len(active_z) : load]])
            term = self._terms(block, active_x, maps, coords)
            new_x, new_z = block(active_x.flatten(0, 1), active_z.flatten(0, 1), y[:load].flatten(0, 1), term, batch)
            active_x, active_z = new_x.unflatten(0, (load, batch)), new_z.unflatten(0, (load, batch))
        return self._output(active_x.flatten(0, 1)).unflatten(0, (levels, batch)), active_z

    def level_forward(
        self,
        level: int,
        z_BCTHW: Tensor,
        noise_B: Tensor,
        terms: Mapping[int, Tensor],
        condition_BMD: Tensor | None,
        *,
        shallow_BCTHW: Tensor | None = None,
        latents_BKZ: Tensor | None = None,
        keep: tuple[int, ...] = (),
    ) -> LevelOutput:
        """One level alone, its context given as fusion terms per block (`fusion_term`): sampling's fast path.

        keep: blocks whose inputs to return, as context for finer levels.
        """
        x = self._embed(z_BCTHW[None], None if shallow_BCTHW is None else shallow_BCTHW[None], first=level)[0]
        z = self._start(None if latents_BKZ is None else latents_BKZ[None], 1, len(x))[0]
        y = self._condition(noise_B[None], condition_BMD)[0]
        features: dict[int, Tensor] = {}
        for b in range(self.config.first_blocks[level], len(self.blocks)):
            if b in keep:
                features[b] = x
            x, z = self.blocks[b](x, z, y, terms.get(b), len(x) if level == 0 else 0)
        return LevelOutput(self._output(x), z, features)

    def fusion_term(self, block: int, context_BND: Tensor | None, coordinates_BN3: Tensor) -> Tensor | None:
        """The cacheable part of block `block`'s fusion: W_context context + W_position position."""
        fusion: Fusion = self.blocks[block].fusion  # type: ignore[assignment]
        return fusion.context_term(context_BND, coordinates_BN3)

    def _terms(self, block: nn.Module, a_LBND: Tensor, maps: dict, coords_LBN3: Tensor) -> Tensor | None:
        """The fusion terms of levels 1.. as rows [(load - 1) * B, N, D]; None where nothing is fused."""
        load = len(a_LBND)
        if load == 1:
            return None
        context = None
        if self.config.fusion == "deep":
            context = mean_context(a_LBND, maps, self.grid, gradient=self.config.context_gradient).flatten(0, 1)
        return block.fusion.context_term(context, coords_LBN3[1:load].flatten(0, 1))  # type: ignore[union-attr, operator]

    def _embed(self, z_LBCTHW: Tensor, shallow_LBCTHW: Tensor | None, first: int = 0) -> Tensor:
        """Tokens [L, B, N, D] in fp32 for the levels `first`, `first` + 1, …"""
        levels, batch = z_LBCTHW.shape[:2]
        tokens = tokenize(z_LBCTHW.flatten(0, 1), self.config.token)
        if shallow_LBCTHW is not None:
            tokens = torch.cat([tokens, tokenize(shallow_LBCTHW.flatten(0, 1), self.config.token)], -1)
        x = self.stem_norm(self.tokenize(tokens)).float().unflatten(0, (levels, batch))
        return x + self.token_position + self.level_embedding[first : first + levels, None, None]

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
        start = self.latent_start.expand(levels, batch, -1, -1)
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

    def _output(self, x_RND: Tensor) -> Tensor:
        """Predictions [R, C, T, H, W] in fp32."""
        tokens = self.detokenize(self.output_norm(x_RND)).float()
        return detokenize(tokens, self.config.patch, self.config.token)
