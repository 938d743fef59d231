"""Tiled inference (HPDM §3.4): levels in order, each a full canvas denoised by overlapping tiles.

Level 0 is one patch. Every later level starts from noise on its whole canvas; at each step all tiles
are denoised, their clean estimates averaged where they overlap, and the solver moves the canvas. What a
tile knows of the finished coarser levels comes through deep context fusion. With `cache` those features
are computed once per level, on the coarser level's own tiles, and each tile reads the tile that contains
it; without, every tile recomputes its exact chain of centred windows at every step (the reference).

Shapes: B videos, U = B * N tiles of a level (one video's together), C channels, T H W, D token width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.diffusion.guidance import dynamic_threshold, guide
from hpdm_core.errors import ConfigError
from hpdm_core.families.conditioned import asks
from hpdm_core.families.hpdm.config import HpdmSample
from hpdm_core.families.hpdm.context import shallow_context
from hpdm_core.families.hpdm.denoiser import LevelOutput
from hpdm_core.pyramid.coords import interpolate, interpolation_matrices, normalised_coordinates
from hpdm_core.pyramid.extract import crop, level_name
from hpdm_core.pyramid.tiling import TileGrid
from hpdm_core.rng import torch_stream
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Outline, Request, Solver, Stage, StageOutline, State

if TYPE_CHECKING:
    from hpdm_core.families.hpdm.family import HpdmFamily

T = TypeVar("T")
VIDEO = "video"
MAX_CHUNK = 64


class Cascade:
    """One request's way through the levels."""

    def __init__(self, family: HpdmFamily, request: Request, options: HpdmSample) -> None:
        self.family, self.request, self.options = family, request, options
        self.pyramid = family.pyramid
        family.check_request(request)
        self.stop = self._stop_level()
        self.grids = [
            TileGrid(self.pyramid, level, options.overlap_axes, options.window) for level in range(self.stop + 1)
        ]

    def outline(self) -> Outline:
        """Cost per level for one video."""
        config, stages = self.family.config, []
        for level, grid in enumerate(self.grids):
            steps, solver = self._entry(self.options.steps, level), self._entry(self.options.solver, level)
            calls = solver_info(solver).calls(steps)
            branches = 2 if self._guided(level) else 1
            depth = sum(n > level for n in config.levels_per_block)
            if not self.options.cache:
                depth = sum(min(n, level + 1) for n in config.levels_per_block)
            frames, height, width = self.pyramid.extent(level)
            stages.append(
                StageOutline(
                    level_name(level), frames, (height, width), solver, steps, len(grid), calls,
                    calls * branches * len(grid) * depth,
                )
            )  # fmt: skip
        frames, height, width = self.pyramid.extent(self.stop)
        return Outline(frames, (height, width), tuple(stages), self.pyramid.step(self.stop)[0])

    def stages(self) -> Generator[Stage, State, Tensor]:
        """Yield each level's stage, receive its clean canvas, return the last one."""
        branches = self._branches()
        video = torch.empty(0)
        for level, grid in enumerate(self.grids):
            for branch in branches:
                branch.enter(level, grid)
            steps, name = self._entry(self.options.steps, level), self._entry(self.options.solver, level)
            offered = {"churn": self.options.churn, "eta": self.options.eta}
            solver = Solver(name, {k: v for k, v in offered.items() if k in solver_info(name).options})
            shape = (3, *self.pyramid.extent(level))
            state = yield Stage(
                level_name(level),
                {VIDEO: shape},
                self._denoiser(level, branches),
                self.family.schedule.grid(steps),
                solver,
                solver_info(name).calls(steps),
            )
            video = state[VIDEO] * self.family.levels[level].scale
            if level < self.stop:
                noisy = self._context_state(video, level)
                for branch in branches:
                    branch.finish(level, noisy)
        return video

    def _denoiser(self, level: int, branches: list[Branch]) -> Callable[[State, float], State]:
        scale = self.family.levels[level].scale
        options, weight = self.options, self._entry(self.options.guidance, level)
        sigmas = self.family.schedule.grid(self._entry(options.steps, level))

        def denoise(state: State, sigma: float) -> State:
            clean = branches[0].denoise(state[VIDEO], sigma)
            if self._guided(level):
                odd = int((sigmas > sigma).sum()) % 2 == 1
                low = weight if options.guidance_low is None else options.guidance_low
                clean = guide(clean, branches[1].denoise(state[VIDEO], sigma), low if odd else weight)
            if options.dynamic_threshold is not None:
                clean = dynamic_threshold(clean, options.dynamic_threshold)
            return {VIDEO: (clean.clamp(-1, 1) if options.clip else clean) / scale}

        return denoise

    def _context_state(self, video: Tensor, level: int) -> Tensor:
        """The finished level as finer ones see it: at noise level `context_sigma`, noise by seed."""
        rows = []
        for seed in self.request.seeds:
            generator = torch_stream(seed, f"context/{level_name(level)}")
            rows.append(torch.randn(video.shape[1:], generator=generator))
        noise = torch.stack(rows).to(video)
        return video / self.family.levels[level].scale + self.options.context_sigma * noise

    def _branches(self) -> list[Branch]:
        """The conditional branch, and the null (or negative) one if any level is guided."""
        branches = [Branch(self, self.family.wanted(self.request))]
        if any(self._guided(level) for level in range(self.stop + 1)):
            branches.append(Branch(self, self.family.unwanted(self.request)))
        return branches

    def _guided(self, level: int) -> bool:
        return asks(self.request) and self._entry(self.options.guidance, level) != 1.0

    def _stop_level(self) -> int:
        if self.options.level is None:
            return self.pyramid.level_of(self.request.frames, self.request.size)
        if self.options.level >= self.pyramid.num_levels:
            raise ConfigError(
                f"sample.level {self.options.level} does not exist",
                hint=f"this model has levels 0 to {self.pyramid.num_levels - 1}",
            )
        frames, *size = self.pyramid.extent(self.options.level)
        if self.request.frames not in (None, frames) or self.request.size not in (None, tuple(size)):
            raise ConfigError(
                f"level {self.options.level} is {frames} frames of {size[0]}x{size[1]}, not what was asked for",
                hint="give either the level or the frames and size",
            )
        return self.options.level

    @staticmethod
    def _entry(values: tuple[T, ...], level: int) -> T:
        return values[min(level, len(values) - 1)]


class Branch:
    """One condition's network calls, with its own cache of coarse features (they depend on the condition)."""

    def __init__(self, cascade: Cascade, condition: Condition | None) -> None:
        self.cascade, self.family, self.options = cascade, cascade.family, cascade.options
        self.net, self.pyramid = cascade.family.denoiser, cascade.pyramid
        self.condition = condition
        self.features: list[dict[int, Tensor]] = []
        self.canvases: list[Tensor] = []

    def enter(self, level: int, grid: TileGrid) -> None:
        """Prepare a level: which tiles, what each of them knows of the coarser levels."""
        self.level, self.grid = level, grid
        self.latents: Tensor | None = None
        self.units = len(self.cascade.request.seeds) * len(grid)
        self.chunk = self.options.chunk or _even_chunk(len(grid))
        self.terms: dict[int, Tensor] = {}
        self.shallow: Tensor | None = None
        if level == 0:
            return
        if self.options.cache:
            self.ancestors = self._ancestor_tiles()
            self.terms = self._cache_terms()
            if self.family.config.fusion == "shallow":
                parents = self.ancestors[level - 1]
                self.shallow = self._shallow_pixels(self.cascade.grids[level - 1].offsets[parents])
        else:
            self.chains = [self.pyramid.parent_chain(level, tuple(o)) for o in grid.offsets]

    def denoise(self, canvas_BCTHW: Tensor, sigma: float) -> Tensor:
        """The clean canvas: every tile denoised, overlaps averaged. Values in units of x."""
        tiles = self.grid.gather(canvas_BCTHW)
        clean, latents = [], []
        for rows, count in self._chunks():
            out, z = self._call(tiles[rows], rows, sigma)
            clean.append(out[:count])
            latents.append(z[:count])
        if self.family.config.self_conditioning > 0:
            self.latents = torch.cat(latents)
        return self.grid.merge(torch.cat(clean))

    def finish(self, level: int, noisy_BCTHW: Tensor) -> None:
        """Keep what finer levels need of a finished level: block inputs on its tiles, or just its pixels."""
        form, sigma = self.family.levels[level], self.options.context_sigma
        self.canvases.append(form.network_input(noisy_BCTHW, sigma))
        self.features.append({})
        keep = tuple(b for b, n in enumerate(self.family.config.levels_per_block) if n > level + 1)
        if not self.options.cache or self.family.config.fusion != "deep":
            return
        tiles, kept = self.grid.gather(noisy_BCTHW), {b: [] for b in keep}
        for rows, count in self._chunks():
            out = self._level_forward(form.network_input(tiles[rows], sigma), rows, sigma, keep)
            for b in keep:
                kept[b].append(out.features[b][:count].to(self._dtype()))
        self.features[level] = {b: torch.cat(parts) for b, parts in kept.items()}

    def _call(self, tiles: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        form = self.family.levels[self.level]
        z = form.network_input(tiles, sigma)
        if self.level > 0 and not self.options.cache:
            output, latents = self._chain_forward(z, rows, sigma)
        else:
            out = self._level_forward(z, rows, sigma, ())
            output, latents = out.output, out.latents
        return form.denoised(tiles, output.float(), sigma), latents

    def _level_forward(self, z: Tensor, rows: Tensor, sigma: float, keep: tuple[int, ...]) -> LevelOutput:
        tokens, mask = self._condition(rows)
        return self.net.level_forward(
            self.level,
            z,
            self._noise(sigma, len(z)),
            {b: term[rows] for b, term in self.terms.items()},
            tokens,
            mask_BM=mask,
            shallow_BCTHW=self._shallow_rows(rows, z),
            latents_BKZ=None if self.latents is None else self.latents[rows],
            keep=keep,
        )

    def _chain_forward(self, z: Tensor, rows: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The exact reference: all coarser windows of each tile, recomputed."""
        videos, tiles = (rows // len(self.grid)).tolist(), (rows % len(self.grid)).tolist()
        chains = torch.stack([torch.from_numpy(self.chains[t]) for t in tiles]).to(z.device)
        stack = []
        for level in range(self.level):
            windows = [
                crop(self.canvases[level][v : v + 1], tuple(self.chains[t][level]), self.pyramid.patch)
                for v, t in zip(videos, tiles, strict=True)
            ]
            stack.append(torch.cat(windows))
        sigmas = [self.options.context_sigma] * self.level + [sigma]
        noise = torch.stack([self._noise(s, len(z)) for s in sigmas])
        own = None if self.latents is None else self.latents[rows]
        # Coarser levels are finished: they start from no latents, and so from zeros.
        before = None if own is None else torch.stack([torch.zeros_like(own)] * self.level + [own])
        tokens, mask = self._condition(rows)
        output, latents = self.net(torch.stack([*stack, z]), noise, chains, tokens, before, mask_BM=mask)
        return output[-1], latents[-1]

    def _cache_terms(self) -> dict[int, Tensor]:
        """Per block, the fusion terms of every tile, [U, N, D]."""
        config, terms = self.family.config, {}
        offsets = self._unit_offsets()
        coords = normalised_coordinates(self.pyramid, self.level, offsets, config.token).flatten(1, 3)
        for b in range(config.first_blocks[self.level], len(config.levels_per_block)):
            parts = []
            for rows, count in self._chunks():
                context = self._cached_context(b, rows, offsets) if config.fusion == "deep" else None
                term = self.net.fusion_term(b, context, coords[rows])
                if term is None:
                    return {}
                parts.append(term[:count].to(self._dtype()))
            terms[b] = torch.cat(parts)
        return terms

    def _cached_context(self, block: int, rows: Tensor, offsets: Tensor) -> Tensor:
        """The mean over coarser levels of their cached features at these tiles (eq. 7)."""
        videos, tiles = rows // len(self.grid), rows % len(self.grid)
        total = torch.zeros(())
        for k in range(self.level):
            coarse = self.cascade.grids[k]
            ancestor = torch.from_numpy(self.ancestors[k]).to(rows.device)[tiles]
            parent_offsets = torch.from_numpy(coarse.offsets).to(rows.device)[ancestor]
            matrices = interpolation_matrices(
                self.pyramid, (self.level, offsets[rows]), (k, parent_offsets), self.family.config.token
            )
            source = self.features[k][block][videos * len(coarse) + ancestor].float()
            total = total.to(source) + interpolate(source, matrices, self.net.grid)
        return total / self.level

    def _ancestor_tiles(self) -> list[np.ndarray]:
        """Per coarser level k, int64 [N]: the tile of level k that each tile of this level reads from."""
        found = [self.grid.parents(self.cascade.grids[self.level - 1])]
        for k in range(self.level - 1, 0, -1):
            step = self.cascade.grids[k].parents(self.cascade.grids[k - 1])
            found.insert(0, step[found[0]])
        return found

    def _shallow_pixels(self, parent_offsets_N3: np.ndarray) -> Tensor:
        """The level before's pixels at every tile, [U, C, t, h, w] (shallow fusion)."""
        canvas, k = self.canvases[self.level - 1], self.level - 1
        crops = [crop(canvas, tuple(o), self.pyramid.patch) for o in parent_offsets_N3]
        windows = torch.stack(crops, dim=1).flatten(0, 1)
        parents = torch.from_numpy(parent_offsets_N3).to(windows.device).repeat(len(canvas), 1)
        return shallow_context(self.pyramid, (self.level, self._unit_offsets()), (k, parents), windows)

    def _shallow_rows(self, rows: Tensor, z: Tensor) -> Tensor | None:
        if self.family.config.fusion != "shallow":
            return None
        return torch.zeros_like(z) if self.shallow is None else self.shallow[rows]

    def _chunks(self) -> Iterator[tuple[Tensor, int]]:
        """Row indices in chunks of one fixed size; the last repeats its final row. Yields (rows, real count)."""
        for start in range(0, self.units, self.chunk):
            rows = torch.arange(start, start + self.chunk, device=self.cascade.request.device)
            yield rows.clamp_max(self.units - 1), min(self.chunk, self.units - start)

    def _unit_offsets(self) -> Tensor:
        offsets = torch.from_numpy(self.grid.offsets).to(self.cascade.request.device)
        return offsets.repeat(len(self.cascade.request.seeds), 1)

    def _condition(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Tokens and mask of the videos that the tiles `rows` belong to."""
        return (None, None) if self.condition is None else self.condition.rows(rows // len(self.grid))

    def _noise(self, sigma: float, count: int) -> Tensor:
        device = self.cascade.request.device
        return self.family.schedule.coordinate(torch.full((count,), sigma, device=device))

    def _dtype(self) -> torch.dtype:
        device = torch.device(self.cascade.request.device).type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def _even_chunk(num_tiles: int) -> int:
    """Tiles per call: at most MAX_CHUNK, and nearly equal parts of one video's tiles, so that little is padding."""
    num_calls = -(-num_tiles // MAX_CHUNK)
    return -(-num_tiles // num_calls)
