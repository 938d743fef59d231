"""The engine that turns seeds into videos: runs a family's plan, stage by stage.

All sampling noise is drawn on the CPU from (seed, stage, component, step) and moved, so that video k is the
same whatever is made beside it, on whichever device.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.rng import torch_stream
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
    while True:
        try:
            stage = plan.send(run_stage(stage, seeds, device, on_progress))
        except StopIteration as finished:
            return finished.value


def run_stage(
    stage: Stage, seeds: Sequence[int], device: torch.device | str, on_progress: OnProgress | None = None
) -> State:
    """One diffusion from noise to a clean state in scaled coordinates."""
    steps = len(stage.sigmas) - 1
    now = 0

    def denoise(state: State, sigma: float) -> State:
        return stage.denoise(state, sigma, now)

    def noise(step: int) -> State:
        return {name: _noise(stage, name, step, seeds, device) for name in stage.shapes}

    def on_step(step: int, calls: int) -> None:
        nonlocal now
        now = step + 1
        if on_progress is not None:
            on_progress(Progress(stage.name, step + 1, steps, calls))

    first = float(stage.sigmas[0])
    start = {name: first * eps for name, eps in noise(-1).items()}
    solver = solver_info(stage.solver.name)
    return solver.run(denoise, start, stage.sigmas, noise, on_step, **stage.solver.options)


def _noise(stage: Stage, name: str, step: int, seeds: Sequence[int], device: torch.device | str) -> Tensor:
    """Standard normal [B, ...] for one component; step -1 is the starting noise."""
    purpose = f"sample/{stage.name}/{name}"
    shape = stage.shapes[name]
    rows = [
        torch.randn(stage.drawn.get(name, shape), generator=torch_stream(seed, purpose, step + 1)) for seed in seeds
    ]
    part = tuple(slice(side) for side in shape)
    return torch.stack([row[part] for row in rows]).to(device)
