"""The engine that turns seeds into videos: runs a family's plan, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.sampling.noise import START, Noise
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Stage, State


@dataclass(frozen=True)
class Progress:
    """Told after every solver step: where sampling stands."""

    stage: str
    step: int
    steps: int
    calls: int


OnProgress = Callable[[Progress], None]


@torch.no_grad()
def run_plan(
    plan: Generator[Stage, State, Tensor],
    seeds: Sequence[int],
    device: torch.device | str,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Drive `plan` to its video, float [B, 3, T, H, W]; row b is made from seeds[b] alone."""
    stage = next(plan)
    with Noise(seeds, device) as noise:
        while True:
            try:
                stage = plan.send(run_stage(stage, noise, on_progress))
            except StopIteration as finished:
                return finished.value


def run_stage(stage: Stage, noise: Noise, on_progress: OnProgress | None = None) -> State:
    """One diffusion from noise to a clean state in scaled coordinates, float32 [B, ...] of every component."""
    steps = len(stage.sigmas) - 1
    now = 0

    def denoise(state: State, sigma: float) -> State:
        return stage.denoise(state, sigma, now)

    def on_step(step: int, calls: int) -> None:
        nonlocal now
        now = step + 1
        if on_progress is not None:
            on_progress(Progress(stage.name, step + 1, steps, calls))

    def draw(step: int) -> State:
        rows = noise(stage.noise, step)
        if START < step < steps - 2:  # who asks in one step asks in every one but the last
            noise.expect(stage.noise, step + 1)
        return {
            name: rows[name][:, *map(slice, shape)].to(noise.device, non_blocking=True)
            for name, shape in stage.shapes.items()
        }

    first = float(stage.sigmas[0])
    start = {name: first * eps for name, eps in draw(START).items()}
    if stage.then is not None:
        noise.expect(stage.then, START)
    solver = solver_info(stage.solver.name)
    return solver.run(denoise, start, stage.sigmas, draw, on_step, **stage.solver.options)
