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
        drawn = coming[1].result() if coming is not None and coming[0] == step else self._draw(step, self._places())
        if self._ahead and START < step < len(self._stage.sigmas) - 3:  # the last step ends without noise
            # Its places are taken here: pinned allocations of another thread would break a graph's capture.
            self._next = step + 1, self._thread.submit(self._draw, step + 1, self._places())
        return {
            name: rows[:, *map(slice, self._stage.shapes[name])].to(self._device, non_blocking=True)
            for name, rows in drawn.items()
        }

    def _places(self) -> State:
        """CPU memory for one step's noise, pinned where it goes to a GPU."""
        pinned, count = self._device.type == "cuda", len(self._seeds)
        return {
            name: torch.empty(count, *self._stage.drawn.get(name, shape), pin_memory=pinned)
            for name, shape in self._stage.shapes.items()
        }

    def _draw(self, step: int, places: State) -> State:
        """One step's noise, drawn into `places`, row by row."""
        for name, rows in places.items():
            purpose = f"sample/{self._stage.name}/{name}"
            for seed, row in zip(self._seeds, rows, strict=True):
                torch.randn(row.shape, generator=torch_stream(seed, purpose, step + 1), out=row)
        return places
