"""One condition's network calls on the tiles of a level, and what those tiles know of the coarser levels.

A tile's context depends on the condition, not on the noise. With `cache` it is computed once: when a level is
finished, its block inputs are kept on its own tiles, already multiplied by the fusion's context matrix (which commutes
with interpolation, and coarse tiles are few); each finer tile then interpolates them from the tile that contains it.

Shapes: B videos, U = B * N tiles of a grid (one video's together), R rows of a call, C channels, T H W, D token width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.families.hpdm.context import Fusion, shallow_context
from hpdm_core.families.hpdm.denoiser import LevelOutput
from hpdm_core.nn.graphs import called
from hpdm_core.pyramid.coords import interpolate, interpolation_matrices, normalised_coordinates
from hpdm_core.pyramid.extract import crop
from hpdm_core.pyramid.tiling import TileGrid

if TYPE_CHECKING:
    from hpdm_core.families.hpdm.cascade import Cascade

MAX_CHUNK = 64
CPU_CHUNK_BYTES = 4 * 2**20
"""Token streams of one call on a CPU: more than this falls out of its caches, and halves the speed."""


class Branch:
    """One condition's way through the levels."""

    def __init__(self, cascade: Cascade, condition: Condition | None) -> None:
        self.cascade, self.family, self.options = cascade, cascade.family, cascade.options
        self.net, self.pyramid = cascade.family.denoiser, cascade.pyramid
        self.condition = condition
        self.features: list[dict[int, Tensor]] = []
        self.canvases: list[Tensor] = []

    def enter(self, level: int) -> None:
        """Prepare a level: what each of its tiles knows of the coarser levels."""
        self.level = level
        self.tiles = {grid: Tiles(self, grid) for grid in self.cascade.phases[level]}

    def denoise(self, canvas_BCTHW: Tensor, sigma: float, grid: TileGrid) -> Tensor:
        """The clean canvas: every tile of `grid` denoised, overlaps averaged. Values in units of x."""
        tiles = self.tiles[grid]
        clean, latents = [], []
        for rows, count in tiles.chunks():
            out, z = self._call(tiles, grid.gather_rows(canvas_BCTHW, rows), rows, sigma)
            clean.append(out[:count])
            if self.family.config.self_conditioning > 0:
                latents.append(z[:count].clone())
        if latents:
            tiles.latents = torch.cat(latents)
        return grid.merge(torch.cat(clean))

    def finish(self, noisy_BCTHW: Tensor) -> None:
        """Keep what finer levels need of the finished level: its block inputs on its tiles, or just its pixels."""
        level, form, sigma = self.level, self.family.levels[self.level], self.cascade.context_sigma
        finished, self.tiles = self.tiles, {}  # they are large: gone before the next level's are made
        self.canvases.append(form.network_input(noisy_BCTHW, sigma))
        self.features.append({})
        if not self.options.cache or self.family.config.fusion != "deep":
            return
        grid = self.cascade.grids[level]
        kept: dict[int, list[Tensor]] = {}
        keep = tuple(b for b, n in enumerate(self.family.config.levels_per_block) if n > level + 1)
        tiles = finished.get(grid) or Tiles(self, grid, end=max(keep))
        for rows, count in tiles.chunks():
            windows = form.network_input(grid.gather_rows(noisy_BCTHW, rows), sigma)
            out = self._level_forward(tiles, windows, rows, sigma, keep)
            for b in keep:
                kept.setdefault(b, []).append(self._project(b, out.features[b])[:count].to(self._dtype()))
        self.features[level] = {b: torch.cat(parts) for b, parts in kept.items()}

    def _project(self, block: int, features_RND: Tensor) -> Tensor:
        fusion: Fusion = self.net.blocks[block].fusion  # type: ignore[assignment]
        assert fusion.context is not None
        return fusion.context(features_RND)

    def _call(self, tiles: Tiles, noisy: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        form = self.family.levels[self.level]
        z = form.network_input(noisy, sigma)
        if self.level > 0 and not self.options.cache:
            output, latents = self._chain_forward(tiles, z, rows, sigma)
        else:
            out = self._level_forward(tiles, z, rows, sigma, ())
            assert out.output is not None
            output, latents = out.output, out.latents
        return form.denoised(noisy, output.float(), sigma), latents

    def _level_forward(self, tiles: Tiles, z: Tensor, rows: Tensor, sigma: float, keep: tuple[int, ...]) -> LevelOutput:
        level, blocks = self.level, tuple(tiles.terms)

        def forward(
            z: Tensor, noise: Tensor, tokens: Tensor | None, mask: Tensor | None, shallow: Tensor | None,
            latents: Tensor | None, *terms: Tensor,
        ) -> tuple[Tensor | None, Tensor, dict[int, Tensor]]:  # fmt: skip
            out = self.net.level_forward(
                level, z, noise, dict(zip(blocks, terms, strict=True)), tokens,
                mask_BM=mask, shallow_BCTHW=shallow, latents_BKZ=latents, keep=keep,
            )  # fmt: skip
            return out.output, out.latents, out.features

        tokens, mask = (None, None) if self.condition is None else self.condition.rows(rows // len(tiles.grid))
        latents = None if tiles.latents is None else tiles.latents[rows]
        inputs = (z, self._noise(sigma, len(z)), tokens, mask, tiles.shallow_rows(rows, z), latents,
                  *(term[rows] for term in tiles.terms.values()))  # fmt: skip
        return LevelOutput(*called(self.net, (level, blocks), forward, inputs, graphs=self.options.graphs and not keep))

    def _chain_forward(self, tiles: Tiles, z: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The exact reference: all coarser windows of each tile, recomputed."""
        num_tiles = len(tiles.grid)
        videos, numbers = (rows // num_tiles).tolist(), (rows % num_tiles).tolist()
        chains = torch.stack([torch.from_numpy(tiles.chains[n]) for n in numbers]).to(z.device)
        stack = []
        for level in range(self.level):
            windows = [
                crop(self.canvases[level][v : v + 1], tuple(tiles.chains[n][level]), self.pyramid.patch)
                for v, n in zip(videos, numbers, strict=True)
            ]
            stack.append(torch.cat(windows))
        sigmas = [self.cascade.context_sigma] * self.level + [sigma]
        noise = torch.stack([self._noise(s, len(z)) for s in sigmas])
        own = None if tiles.latents is None else tiles.latents[rows]
        # Coarser levels are finished: they start from no latents, and so from zeros.
        before = None if own is None else torch.stack([torch.zeros_like(own)] * self.level + [own])
        tokens, mask = (None, None) if self.condition is None else self.condition.rows(rows // num_tiles)
        output, latents = self.net(torch.stack([*stack, z]), noise, chains, tokens, before, mask_BM=mask)
        return output[-1], latents[-1]

    def _noise(self, sigma: float, count: int) -> Tensor:
        device = self.cascade.request.device
        return self.family.schedule.coordinate(torch.full((count,), sigma, device=device))

    def _dtype(self) -> torch.dtype:
        device = torch.device(self.cascade.request.device).type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


class Tiles:
    """The tiles of one grid for every video: how they are cut into calls, and their context.

    chunk: tiles per network call. terms: per block, the fusion terms [U, N, D]. latents: of the step before.
    end: the first block that will not run; None where all do.
    The branch is not kept: a cycle would keep its tensors on the GPU until Python looks for cycles.
    """

    def __init__(self, branch: Branch, grid: TileGrid, end: int | None = None) -> None:
        self.grid, self.level, self.fusion = grid, grid.level, branch.family.config.fusion
        self.end = len(branch.family.config.levels_per_block) if end is None else end
        self.device = torch.device(branch.cascade.request.device)
        self.units = len(branch.cascade.request.seeds) * len(grid)
        self.device_kind = branch.cascade.request.device_kind
        self.chunk = self._chunk_size(branch)
        self.latents: Tensor | None = None
        self.terms: dict[int, Tensor] = {}
        self.shallow: Tensor | None = None
        if self.level == 0:
            return
        if not branch.options.cache:
            self.chains = [branch.pyramid.parent_chain(self.level, tuple(o)) for o in grid.offsets]
            return
        self.ancestors = self._ancestor_tiles(branch)
        self.terms = self._fusion_terms(branch)
        if self.fusion == "shallow":
            self.shallow = self._shallow_pixels(branch)

    def chunks(self) -> Iterator[tuple[Tensor, int]]:
        """Row indices in chunks of one fixed size; the last repeats its final row. Yields (rows, real count).

        On several CPU threads a matrix product rounds a row by its place among the rows. So that a video's tiles keep
        their places whatever is made beside it, each video begins a chunk there, if its tiles fill one.
        """
        apart = self.device_kind == "cpu" and self.chunk < len(self.grid)
        span = len(self.grid) if apart else self.units
        for first in range(0, self.units, span):
            end = first + span
            for start in range(first, end, self.chunk):
                rows = torch.arange(start, start + self.chunk, device=self.device)
                yield rows.clamp_max(end - 1), min(self.chunk, end - start)

    def shallow_rows(self, rows: Tensor, z: Tensor) -> Tensor | None:
        """The shallow baseline's extra input; zeros at level 0."""
        if self.fusion != "shallow":
            return None
        return torch.zeros_like(z) if self.shallow is None else self.shallow[rows]

    def _chunk_size(self, branch: Branch) -> int:
        """The same for one video or many, all frames or the first: results must not depend on what is made beside."""
        config, given = branch.family.config, branch.options.chunk
        if given is not None:
            return given if isinstance(given, int) else given[min(self.level, len(given) - 1)]
        most = MAX_CHUNK
        if self.device_kind == "cpu":
            most = CPU_CHUNK_BYTES // (4 * config.token_dim * math.prod(branch.net.grid))
        return even_chunk(self.grid.per_time, most)

    def _ancestor_tiles(self, branch: Branch) -> list[np.ndarray]:
        """Per coarser level k, int64 [N]: the tile of level k that each tile of this level reads from."""
        grids = branch.cascade.grids
        found = [self.grid.parents(grids[self.level - 1])]
        for k in range(self.level - 1, 0, -1):
            step = grids[k].parents(grids[k - 1])
            found.insert(0, step[found[0]])
        return found

    def _fusion_terms(self, branch: Branch) -> dict[int, Tensor]:
        """Per block, the fusion terms of every tile, [U, N, D]: mean context (eq. 7) and position."""
        config, deep = branch.family.config, self.fusion == "deep"
        offsets = torch.from_numpy(self.grid.offsets).to(self.device)
        # Where a tile lies is the same in every video, and so is how it reads from its ancestors.
        coordinates = normalised_coordinates(branch.pyramid, self.level, offsets, config.token).flatten(1, 3)
        ancestors = [torch.from_numpy(found).to(self.device) for found in self.ancestors]
        blocks = range(config.first_blocks[self.level], self.end) if deep or config.coordinates else ()
        shape = (self.units, math.prod(branch.net.grid), config.token_dim)
        # They are the largest tensors of a level: filled part by part, never joined.
        terms = {b: torch.empty(shape, dtype=branch._dtype(), device=self.device) for b in blocks}
        done = 0
        for rows, count in self.chunks() if terms else ():
            videos, tiles = rows // len(self.grid), rows % len(self.grid)
            maps = self._maps(branch, tiles, offsets, ancestors) if deep else []
            for b in blocks:
                term = branch.net.fusion_term(b, None, coordinates[tiles])
                for k, matrices in enumerate(maps):
                    source = branch.features[k][b][videos * len(branch.cascade.grids[k]) + ancestors[k][tiles]]
                    heard = interpolate(source.float(), matrices, branch.net.grid)
                    term = heard / self.level if term is None else term.add_(heard, alpha=1 / self.level)
                assert term is not None
                terms[b][done : done + count] = term[:count]
            done += count
        return terms

    def _maps(self, branch: Branch, tiles: Tensor, offsets: Tensor, ancestors: list[Tensor]) -> list[list[Tensor]]:
        """Per coarser level, the interpolation matrices of `tiles`."""
        found = []
        for k, ancestor in enumerate(ancestors):
            coarse = torch.from_numpy(branch.cascade.grids[k].offsets).to(self.device)[ancestor[tiles]]
            child = (self.level, offsets[tiles])
            found.append(interpolation_matrices(branch.pyramid, child, (k, coarse), branch.family.config.token))
        return found

    def _shallow_pixels(self, branch: Branch) -> Tensor:
        """The level before's pixels at every tile, [U, C, t, h, w] (shallow fusion)."""
        k, patch = self.level - 1, branch.pyramid.patch
        canvas, parents = branch.canvases[k], branch.cascade.grids[k].offsets[self.ancestors[k]]
        windows = torch.stack([crop(canvas, tuple(o), patch) for o in parents], dim=1).flatten(0, 1)
        own, above = (torch.from_numpy(o).to(self.device).repeat(len(canvas), 1) for o in (self.grid.offsets, parents))
        return shallow_context(branch.pyramid, (self.level, own), (k, above), windows)


def even_chunk(num_tiles: int, most: int) -> int:
    """Tiles per call, at most `most` and not under half of it where there are more: as little padding as possible."""
    most = max(min(most, num_tiles), 1)
    return min(range(most, most // 2, -1), key=lambda chunk: -num_tiles % chunk)
