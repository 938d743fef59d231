"""The noise of one diffusion: drawn on the CPU from (seed, stage, component, step) and moved to the device.

So video k is the same whatever is made beside it, on whichever device. Solvers that add noise in every step would
make a GPU wait for these draws: once such a solver has asked, the next step's are made by a thread meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from hpdm_core.rng import torch_stream
from hpdm_core.sampling.stage import Stage, State

START = -1
"""The step of the noise that sampling starts from."""


class StageNoise:
    """Standard normal states of `stage`, a row for each seed: `noise(step)`, with step `START` or a solver's.

    ahead: draw the next step's in a thread (None: on a CUDA device, where the processor has time for it).
    """

    def __init__(
        self, stage: Stage, seeds: Sequence[int], device: torch.device | str, *, ahead: bool | None = None
    ) -> None:
        self._stage, self._seeds, self._device = stage, tuple(seeds), torch.device(device)
        self._ahead = self._device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")
        self._next: tuple[int, Future[State]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> State:
        """Float32 [B, ...] of every component, on the device."""
        coming, self._next = self._next, None
        drawn = coming[1].result() if coming is not None and coming[0] == step else self._draw(step)
        if self._ahead and START < step < len(self._stage.sigmas) - 3:  # the last step ends without noise
            self._next = step + 1, self._thread.submit(self._draw, step + 1)
        if self._device.type == "cuda":  # pinned here: allocations of another thread would break a graph's capture
            drawn = {name: part.pin_memory() for name, part in drawn.items()}
        return {name: part.to(self._device, non_blocking=True) for name, part in drawn.items()}

    def _draw(self, step: int) -> State:
        """One step's state on the CPU."""
        return {name: self._component(name, step) for name in self._stage.shapes}

    def _component(self, name: str, step: int) -> torch.Tensor:
        purpose, shape = f"sample/{self._stage.name}/{name}", self._stage.shapes[name]
        drawn = self._stage.drawn.get(name, shape)
        rows = [torch.randn(drawn, generator=torch_stream(seed, purpose, step + 1)) for seed in self._seeds]
        part = tuple(slice(side) for side in shape)
        return torch.stack([row[part] for row in rows])
