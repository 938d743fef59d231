"""Solvers as plain functions over states in scaled coordinates, du = (u - D(u)) / sigma dsigma.

Every solver has one signature, `solver(denoise, u, sigmas, noise, on_step, **options) -> State`, and knows
nothing of networks, tiles or families. A state is a dict of components that share sigma (their shifts
are in their scales, see `stage.py`), so each formula is applied to every component alike.

denoise(state, sigma) -> clean state. sigmas: decreasing, last 0. noise(step) -> standard normal state.
on_step(step, calls) is told after each step how many network calls it took.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hpdm_core.errors import ConfigError
from hpdm_core.sampling.stage import Denoiser, State

Noise = Callable[[int], State]
OnStep = Callable[[int, int], None]


def euler(denoise: Denoiser, u: State, sigmas: Tensor, noise: Noise, on_step: OnStep) -> State:
    """First-order deterministic steps; equals DDIM with eta = 0 in the variance-preserving view."""
    for step, (now, then) in enumerate(_pairs(sigmas)):
        u = _blend(denoise(u, now), u, then / now)
        on_step(step, 1)
    return u


def heun(
    denoise: Denoiser,
    u: State,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    churn: float = 0.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    churn_noise: float = 1.003,
) -> State:
    """EDM's second-order sampler with churn (Karras et al. 2022, algorithm 2). churn = 0: deterministic."""
    num_steps = len(sigmas) - 1
    for step, (now, then) in enumerate(_pairs(sigmas)):
        gamma = min(churn / num_steps, 2**0.5 - 1) if churn_min <= now <= churn_max else 0.0
        hot = now * (1 + gamma)
        if gamma > 0:
            spread = churn_noise * (hot**2 - now**2) ** 0.5
            fresh = noise(step)
            u = {k: v + spread * fresh[k] for k, v in u.items()}
        clean = denoise(u, hot)
        moved = _blend(clean, u, then / hot)
        if then > 0:
            clean_then = denoise(moved, then)
            slope = {k: (u[k] - clean[k]) / (2 * hot) + (moved[k] - clean_then[k]) / (2 * then) for k in u}
            moved = {k: u[k] + (then - hot) * slope[k] for k in u}
        u = moved
        on_step(step, 2 if then > 0 else 1)
    return u


def ddim(denoise: Denoiser, u: State, sigmas: Tensor, noise: Noise, on_step: OnStep, *, eta: float = 0.0) -> State:
    """DDIM (Song et al. 2021). eta = 0 is `euler`; eta = 1 is ancestral sampling.

    DDIM's variance, divided by the signal power at the target, is eta² then² (now² - then²) / now².
    """
    for step, (now, then) in enumerate(_pairs(sigmas)):
        up = eta * then * (now**2 - then**2) ** 0.5 / now
        down = (then**2 - up**2) ** 0.5
        u = _blend(denoise(u, now), u, down / now)
        if up > 0:
            fresh = noise(step)
            u = {k: v + up * fresh[k] for k, v in u.items()}
        on_step(step, 1)
    return u


def ancestral(denoise: Denoiser, u: State, sigmas: Tensor, noise: Noise, on_step: OnStep) -> State:
    """DDPM's posterior sampling: DDIM with eta = 1."""
    return ddim(denoise, u, sigmas, noise, on_step, eta=1.0)


def dpmpp_2m(denoise: Denoiser, u: State, sigmas: Tensor, noise: Noise, on_step: OnStep) -> State:
    """DPM-Solver++(2M) (Lu et al. 2022): second order from one call a step, reusing the last estimate."""
    previous: State | None = None
    previous_log_step = 0.0
    for step, (now, then) in enumerate(_pairs(sigmas)):
        clean = denoise(u, now)
        if then == 0:
            u = clean
        else:
            ratio = then / now
            log_step = math.log(now / then)
            guess = clean
            if previous is not None:
                lead = 0.5 * log_step / previous_log_step
                guess = {k: (1 + lead) * clean[k] - lead * previous[k] for k in clean}
            u = _blend(guess, u, ratio)
            previous_log_step = log_step
        previous = clean
        on_step(step, 1)
    return u


@dataclass(frozen=True)
class SolverInfo:
    """A solver's function, its option names and its network calls for n steps."""

    run: Callable[..., State]
    options: tuple[str, ...]
    calls: Callable[[int], int]

    def step_calls(self, steps: int) -> list[int]:
        """Network calls of each of `steps` steps; the last one may take fewer."""
        return [self.calls(2) - self.calls(1)] * (steps - 1) + [self.calls(1)]


SOLVERS: dict[str, SolverInfo] = {
    "euler": SolverInfo(euler, (), lambda n: n),
    "heun": SolverInfo(heun, ("churn", "churn_min", "churn_max", "churn_noise"), lambda n: 2 * n - 1),
    "ddim": SolverInfo(ddim, ("eta",), lambda n: n),
    "ancestral": SolverInfo(ancestral, (), lambda n: n),
    "dpmpp_2m": SolverInfo(dpmpp_2m, (), lambda n: n),
}


def solver_info(name: str) -> SolverInfo:
    """The registered solver `name`; ConfigError lists the known ones."""
    if name not in SOLVERS:
        raise ConfigError(f"unknown solver {name!r}", hint=f"known solvers: {', '.join(SOLVERS)}")
    return SOLVERS[name]


def _pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    values = [float(s) for s in sigmas]
    return list(itertools.pairwise(values))


def _blend(clean: State, u: State, ratio: float) -> State:
    """Move u towards `clean` so that its distance shrinks by `ratio`; exact at ratio 0."""
    return {k: clean[k] + ratio * (u[k] - clean[k]) for k in u}
