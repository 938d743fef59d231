"""The training loop: fetch, losses, backward, guard, step, EMA, hooks. It knows no family.

Everything random in a step is a function of the seed and of the positions of its videos in the data
stream, so the loop carries no random state: a run resumed at video n is the run that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from hpdm_core.config.schema import TrainSection
from hpdm_core.data.window import Batch
from hpdm_core.families.base import Family, Phase
from hpdm_core.rng import BatchStreams
from hpdm_core.training.distributed import World, gradient_sync
from hpdm_core.training.ema import Ema
from hpdm_core.training.graph import GraphedStep
from hpdm_core.training.guard import NonfiniteGuard, found_inf
from hpdm_core.training.optim import RoleOptimizer, learning_rate
from hpdm_core.training.state import TrainState, phase_batch, phase_steps
from hpdm_core.training.switches import computing


class Hook(Protocol):
    """Something that happens between steps. On several ranks every rank runs every hook."""

    def due(self, state: TrainState) -> bool:
        """Whether to run after the step that `state` has just counted."""
        ...

    def run(self, state: TrainState) -> None:
        """Do it."""
        ...


@dataclass
class Trainer:
    """One phase of a run: `module` is `family` as the ranks share it, `batches` its endless micro-batches."""

    train: TrainSection
    phase: Phase
    family: Family
    module: nn.Module
    roles: Sequence[RoleOptimizer]
    ema: Ema
    batches: Iterator[Batch]
    state: TrainState
    world: World
    guard: NonfiniteGuard
    hooks: Sequence[Hook] = ()
    micros: list[Batch] = field(default_factory=list)
    _names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _graphs: dict[str, GraphedStep] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """Steps of the phase from its start to its end."""
        return phase_steps(self.phase, self.train, self.state)

    def steps(self) -> Iterator[TrainState]:
        """Run the rest of the phase, yielding after each step and its hooks."""
        state, size = self.state, phase_batch(self.phase, self.train)
        while state.step < self.total_steps and not state.ended:
            started = time.perf_counter()
            self.micros = self._fetch(size // self.world.size)
            for role in self.roles:
                if role.role.active(state.step):
                    self._update(role, (state.videos_seen, state.videos_seen + size - 1))
            state.advance(size)
            self.ema.update(state.step, state.phase_videos)
            state.finished = state.step >= self.total_steps
            # One step behind unless a hook needs the numbers now: reading them waits for the device.
            self.settle(None if any(hook.due(state) for hook in self.hooks) else state.step)
            state.seconds += time.perf_counter() - started
            for hook in self.hooks:  # in turn: one may end the phase, which those behind it wait for
                if hook.due(state):
                    hook.run(state)
            yield state

    def _fetch(self, rows: int) -> list[Batch]:
        """This rank's micro-batches of one step, `rows` rows in all."""
        micros: list[Batch] = []
        while rows > 0:
            batch = next(self.batches)
            rows -= len(batch.positions)
            micros.append(batch)
        return micros

    def _update(self, role: RoleOptimizer, videos: tuple[int, int]) -> None:
        """One guarded step of one optimiser."""
        step = self.state.step + 1
        lr = learning_rate(role.section, step - 1, self.total_steps)
        if self.train.cuda_graph:
            numbers = self._graphed(role)(self.micros[0], lr)
        else:
            streams = [BatchStreams(self.train.seed, batch.positions, self.world.device) for batch in self.micros]
            numbers = self._step(role, self.micros, streams, lr)
        self.guard.submit(role.name, step, videos, self._names[role.name], numbers)

    def _graphed(self, role: RoleOptimizer) -> GraphedStep:
        """The step of `role` on one micro-batch, replayed from a CUDA graph."""
        if role.name not in self._graphs:

            def compute(batch: Batch, streams: BatchStreams, lr: Tensor) -> Tensor:
                return self._step(role, [batch], [streams], lr)

            self._graphs[role.name] = GraphedStep(compute, self.train.seed, self.world.device)
        return self._graphs[role.name]

    def _step(
        self, role: RoleOptimizer, micros: Sequence[Batch], streams: Sequence[BatchStreams], lr: float | Tensor
    ) -> Tensor:
        """Losses, gradients, update; returns loss, gradient norm and the loss's parts. Nothing waits for the device."""
        role.zero_grad()
        numbers = self._backward(role.name, micros, streams)
        norm = role.gradient_norm()
        loss, parts = numbers.pop("loss"), numbers
        shared = self.world.mean(torch.stack([loss, *parts.values()]))
        row = torch.cat([shared[:1], norm.reshape(1), shared[1:]])
        self._names[role.name] = ("loss", "grad_norm", *parts)
        role.step(lr, norm, found_inf(row))
        return row

    def _backward(self, role: str, micros: Sequence[Batch], streams: Sequence[BatchStreams]) -> dict[str, Tensor]:
        """Accumulate the step's gradients; returns the mean `loss` and its parts over this rank's rows."""
        rows = sum(len(batch.positions) for batch in micros)
        means: dict[str, Tensor] = {}
        for index, (batch, drawn) in enumerate(zip(micros, streams, strict=True)):
            share = len(batch.positions) / rows
            with gradient_sync(self.module, last=index == len(micros) - 1):
                with computing(self.train, self.world.device):
                    losses = self.module(role, batch, drawn)
                (losses.total * share).backward()
            for name, value in {"loss": losses.total, **losses.parts}.items():
                term = value.detach().float() * share
                means[name] = means[name] + term if name in means else term
        return means

    def settle(self, before_step: int | None = None) -> None:
        """Take arrived numbers into the meter; raises NumericsError if one of those steps was bad."""
        for role, numbers in self.guard.settle(before_step):
            for name, value in numbers.items():
                total, count = self.state.meter.get(f"{role}/{name}", (0.0, 0))
                self.state.meter[f"{role}/{name}"] = (total + value, count + 1)
