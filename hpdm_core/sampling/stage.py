"""The vocabulary between families and the sampling engine: requests, stages, outlines.

A state is a dict of component tensors in *scaled* coordinates, u_k = x_k / s_k + sigma * eps, where s_k is the
component's input scale (sigma_in of scaled EDM). Since logSNR_k = -2 ln(sigma) - 2 ln(s_k), one sigma
serves all components and every solver is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]
Denoiser = Callable[[State, float], State]
"""Scaled noisy state [B, ...] and sigma to the scaled clean estimate (x_hat_k / s_k)."""
StepDenoiser = Callable[[State, float, int], State]
"""A denoiser that is also told the solver's step, from 0 on: the same number for all calls of one step."""


@dataclass(frozen=True)
class Request:
    """Which videos are wanted. One row per seed: B = len(seeds).

    labels: class index per row (None: unconditional); prompts: text per row (None: no text). negatives: text
    per row that guidance leads away from, instead of from no text.
    frames, size: the wanted length and (height, width); None takes the model's largest.
    sized_for: kind of device ("cuda") whose sizes of network calls to take; None: of `device`.
    """

    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    device: torch.device | str = "cpu"
    negatives: tuple[str, ...] | None = None
    sized_for: str | None = None

    @property
    def device_kind(self) -> str:
        """The kind of device that network calls are sized for."""
        return self.sized_for or torch.device(self.device).type


@dataclass(frozen=True)
class Solver:
    """A solver by registry name with its options (churn, eta)."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """What each draw of noise for a stage is: the stage's name, and per component the shape of one row."""

    stage: str
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stage:
    """One diffusion from pure noise to a clean state.

    shapes: per component, the shape of one row (no batch axis).
    sigmas: float64 [num_steps + 1], decreasing, last 0. calls: network calls the solver will make.
    drawn: per component, the larger shape whose noise the state takes its first part from, along every axis.
    turns: after how many steps `denoise` is the same work again.
    then: what the next stage will draw, if that is known already.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    denoise: StepDenoiser
    sigmas: Tensor
    solver: Solver
    calls: int
    drawn: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    turns: int = 1
    then: Drawn | None = None

    @property
    def noise(self) -> Drawn:
        """What is drawn for this stage."""
        return Drawn(self.name, {name: self.drawn.get(name, shape) for name, shape in self.shapes.items()})


@dataclass(frozen=True)
class StageOutline:
    """The cost of one stage for one video.

    tiles: of one call, the mean over the calls rounded up where they differ. tile_calls: of all calls.
    """

    name: str
    frames: int
    size: tuple[int, int]
    solver: str
    steps: int
    tiles: int
    calls: int
    block_evals: int
    tile_calls: int = 0

    def __post_init__(self) -> None:
        if not self.tile_calls:
            object.__setattr__(self, "tile_calls", self.tiles * self.calls)


@dataclass(frozen=True)
class Outline:
    """What a request will produce and cost, before anything runs.

    frame_step: frames of the training clips that one frame stands for (coarse levels show every n-th).
    joins: the first frame of every clip but the first, of a video that is made clip by clip.
    """

    frames: int
    size: tuple[int, int]
    stages: Sequence[StageOutline]
    frame_step: int = 1
    joins: tuple[int, ...] = ()
