"""Tiled inference (HPDM §3.4): levels in order, each a full canvas denoised by tiles.

Level 0 is one patch. Every later level starts from noise on its whole canvas; at each step all tiles
are denoised, their clean estimates averaged where they overlap, and the solver moves the canvas. With
`phases: alternate` the windows of overlapping axes take turns instead, one half of them a step. What a tile knows of
the finished coarser levels comes through deep context fusion (branch.py): read from the coarser tile that contains
it, or with `cache: false` from its exact chain of centred windows, recomputed at every step (the reference).

Where only the first frames are wanted, each level makes only the tiles that these depend on.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from hpdm_core.diffusion.guidance import dynamic_threshold, guide
from hpdm_core.errors import ConfigError
from hpdm_core.families.conditioned import asks
from hpdm_core.families.hpdm.branch import Branch
from hpdm_core.families.hpdm.config import HpdmSample
from hpdm_core.pyramid.extract import level_name
from hpdm_core.pyramid.tiling import TileGrid
from hpdm_core.rng import torch_stream
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Drawn, Outline, Request, Solver, Stage, StageOutline, State, StepDenoiser

if TYPE_CHECKING:
    from hpdm_core.families.hpdm.family import HpdmFamily

T = TypeVar("T")
VIDEO = "video"


class Cascade:
    """One request's way through the levels."""

    def __init__(self, family: HpdmFamily, request: Request, options: HpdmSample) -> None:
        self.family, self.request, self.options = family, request, options
        self.pyramid = family.pyramid
        family.check_request(request)
        self.context_sigma = options.context_sigma or family.schedule.low
        self.stop = self._stop_level()
        self.noise_levels = [self._noise_levels(level) for level in range(self.stop + 1)]
        whole = self.pyramid.extent(self.stop)[0]
        self.frames = request.frames or whole
        self._check_prefix(whole)
        self.grids = self._needed_tiles()
        self.phases = [self._level_phases(grid) for grid in self.grids]

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
            frames, height, width = grid.extent
            phases, each = self.phases[level], solver_info(solver).step_calls(steps)
            tile_calls = sum(n * len(self._in_turn(phases, step)) for step, n in enumerate(each))
            stages.append(
                StageOutline(
                    level_name(level), frames, (height, width), solver, steps, -(-tile_calls // calls), calls,
                    tile_calls * branches * depth, tile_calls,
                )
            )  # fmt: skip
        _, height, width = self.pyramid.extent(self.stop)
        return Outline(self.frames, (height, width), tuple(stages), self.pyramid.step(self.stop)[0])

    def stages(self) -> Generator[Stage, State, Tensor]:
        """Yield each level's stage, receive its clean canvas, return the last one."""
        branches = self._branches()
        video = torch.empty(0)
        for level, grid in enumerate(self.grids):
            del branches[self._live(level) :]
            for branch in branches:
                branch.enter(level)
            name = self._entry(self.options.solver, level)
            offered = {"churn": self.options.churn, "eta": self.options.eta}
            solver = Solver(name, {k: v for k, v in offered.items() if k in solver_info(name).options})
            state = yield Stage(
                level_name(level),
                {VIDEO: (3, *grid.extent)},
                self._denoiser(level, branches),
                self.noise_levels[level],
                solver,
                solver_info(name).calls(len(self.noise_levels[level]) - 1),
                drawn=self._drawn(level).shapes,
                turns=len(self.phases[level]),
                then=self._drawn(level + 1) if level < self.stop else None,
            )
            video = state[VIDEO] * self.family.levels[level].scale
            if level < self.stop:
                noisy = self._context_state(video, level)
                for branch in branches[: self._live(level + 1)]:
                    branch.finish(noisy)
        return video[:, :, : self.frames]

    def _drawn(self, level: int) -> Drawn:
        """The noise of a level: of its whole canvas, of which shorter videos take the first frames."""
        return Drawn(level_name(level), {VIDEO: (3, *self.pyramid.extent(level))})

    def _noise_levels(self, level: int) -> Tensor:
        """The noise before each of a level's steps, and the 0 after the last."""
        schedule, lowest = self.family.schedule, self.options.sigma_min
        steps = self._entry(self.options.steps, level)
        if lowest is None:
            return schedule.grid(steps)
        sigma_min = self._entry(lowest, level)
        if sigma_min >= schedule.sigma_max:
            raise ConfigError(
                f"sample.sigma_min of {sigma_min:g} is not below the model's sigma_max of {schedule.sigma_max:g}",
                hint="a few hundredths to 1 are usual",
            )
        return replace(schedule, sigma_min=sigma_min).grid(steps)

    def _denoiser(self, level: int, branches: list[Branch]) -> StepDenoiser:
        scale, phases = self.family.levels[level].scale, self.phases[level]
        options, weight = self.options, self._entry(self.options.guidance, level)
        low = weight if options.guidance_low is None else options.guidance_low

        def denoise(state: State, sigma: float, step: int) -> State:
            grid = self._in_turn(phases, step)
            clean = branches[0].denoise(state[VIDEO], sigma, grid)
            if self._guided(level):
                free = branches[1].denoise(state[VIDEO], sigma, grid)
                clean = guide(clean, free, self._in_turn((weight, low), step))
            if options.dynamic_threshold is not None:
                clean = dynamic_threshold(clean, options.dynamic_threshold)
            return {VIDEO: (clean.clamp(-1, 1) if options.clip else clean) / scale}

        return denoise

    def _context_state(self, video: Tensor, level: int) -> Tensor:
        """The finished level as finer ones see it: at noise level `context_sigma`, noise by seed."""
        rows = []
        for seed in self.request.seeds:
            generator = torch_stream(seed, f"context/{level_name(level)}")
            rows.append(torch.randn((3, *self.pyramid.extent(level)), generator=generator)[:, : video.shape[2]])
        noise = torch.stack(rows).to(video)
        return video / self.family.levels[level].scale + self.context_sigma * noise

    def _branches(self) -> list[Branch]:
        """The conditional branch, and the null (or negative) one if any level is guided."""
        branches = [Branch(self, self.family.wanted(self.request))]
        if self._live(0) > 1:
            branches.append(Branch(self, self.family.unwanted(self.request)))
        return branches

    def _live(self, level: int) -> int:
        """How many branches are still asked from `level` on: the null one no longer than any level is guided."""
        return 2 if any(self._guided(finer) for finer in range(level, self.stop + 1)) else 1

    def _guided(self, level: int) -> bool:
        return asks(self.request) and self._entry(self.options.guidance, level) != 1.0

    def _stop_level(self) -> int:
        level, request = self.options.level, self.request
        if level is None:
            return self.pyramid.level_of(request.frames, request.size)
        if level >= self.pyramid.num_levels:
            raise ConfigError(
                f"sample.level {level} does not exist",
                hint=f"this model has levels 0 to {self.pyramid.num_levels - 1}",
            )
        frames, *size = self.pyramid.extent(level)
        if (request.frames or 0) > frames or request.size not in (None, tuple(size)):
            raise ConfigError(
                f"level {level} is {frames} frames of {size[0]}x{size[1]}, not what was asked for",
                hint="give either the level or the size, and no more frames than it has",
            )
        return level

    def _check_prefix(self, whole: int) -> None:
        """Raise ConfigError where the first frames cannot be made alone as they are in the whole video."""
        options = self.options
        if self.frames == whole or options.exact_prefix:
            return
        why = f"overlap: {options.overlap}" if options.overlap_axes[0] else "dynamic_threshold"
        raise ConfigError(
            f"the first {self.frames} of {whole} frames depend on all others with {why}",
            hint="make the whole video, or use --overlap spatial or none, without dynamic_threshold",
        )

    def _needed_tiles(self) -> list[TileGrid]:
        """Per level, the tiles that the wanted frames need: their own, and those they read, directly or not."""
        axes, window = self.options.overlap_axes, self.options.window
        grids = [TileGrid(self.pyramid, level, axes, window) for level in range(self.stop + 1)]
        needed = [0] * self.stop + [self.frames]
        for level in range(self.stop, -1, -1):
            grids[level] = TileGrid(self.pyramid, level, axes, window, frames=needed[level])
            for coarser, end in enumerate(self._frames_read(grids, level)):
                needed[coarser] = max(needed[coarser], end)
        return grids

    def _frames_read(self, grids: list[TileGrid], level: int) -> list[int]:
        """Per coarser level that the tiles of `level` read directly, where the last frame they read ends."""
        if level == 0:
            return []
        grid, part = grids[level], self.pyramid.patch[0]
        if self.options.cache:
            parents = grid.parents(grids[level - 1])
            return [0] * (level - 1) + [int(grids[level - 1].offsets[parents, 0].max()) + part]
        chains = [self.pyramid.parent_chain(level, tuple(offset)) for offset in grid.offsets]
        return [max(int(chain[k, 0]) for chain in chains) + part for k in range(level)]

    def _level_phases(self, grid: TileGrid) -> tuple[TileGrid, ...]:
        """The grids that take turns at a level: one, or with `phases: alternate` two where windows overlap."""
        alternate = self.options.phases == "alternate" and grid.overlaps
        return grid.phases() if alternate else (grid,)

    @staticmethod
    def _in_turn(things: Sequence[T], step: int) -> T:
        """What serves all calls of a solver's step: its number says so, not sigma, which churn moves."""
        return things[step % len(things)]

    @staticmethod
    def _entry(values: tuple[T, ...], level: int) -> T:
        return values[min(level, len(values) - 1)]
