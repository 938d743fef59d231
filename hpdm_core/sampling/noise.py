"""The noise of sampling: drawn on the CPU from (seed, stage, component, step) and moved to the device.

So video k is the same whatever is made beside it, on whichever device. A GPU would wait for these draws (a video of
64x256x256 starts from 12.6 million numbers), so threads make those that are known to come, while it works.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from hpdm_core.rng import torch_stream
from hpdm_core.sampling.stage import Drawn, State

START = -1
"""The step of the noise that a stage starts from."""


class Noise:
    """Standard normal states, a row for each seed: `noise(drawn, step)`, with step `START` or a solver's.

    ahead: let threads draw what is expected (None: on a CUDA device, where the processor has time for it).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str, *, ahead: bool | None = None) -> None:
        self._seeds, self.device = tuple(seeds), torch.device(device)
        self._ahead = self.device.type == "cuda" if ahead is None else ahead
        # Two: a stage's next step must not wait for the start of the stage after it.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="noise")
        self._coming: dict[tuple[str, int], Future[State]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def expect(self, drawn: Drawn, step: int) -> None:
        """Say that `noise(drawn, step)` will be asked for."""
        if self._ahead:
            # Its places are taken here: pinned allocations of another thread would break a graph's capture.
            places = self._places(drawn)
            self._coming[drawn.stage, step] = self._threads.submit(self._draw, drawn, step, places)

    def __call__(self, drawn: Drawn, step: int) -> State:
        """Float32 [B, ...] of every component, on the CPU."""
        coming = self._coming.pop((drawn.stage, step), None)
        return self._draw(drawn, step, self._places(drawn)) if coming is None else coming.result()

    def _places(self, drawn: Drawn) -> State:
        """CPU memory for one draw, pinned where it goes to a GPU."""
        pinned, count = self.device.type == "cuda", len(self._seeds)
        return {name: torch.empty(count, *shape, pin_memory=pinned) for name, shape in drawn.shapes.items()}

    def _draw(self, drawn: Drawn, step: int, places: State) -> State:
        """One draw into `places`, row by row."""
        for name, rows in places.items():
            purpose = f"sample/{drawn.stage}/{name}"
            for seed, row in zip(self._seeds, rows, strict=True):
                torch.randn(row.shape, generator=torch_stream(seed, purpose, step + 1), out=row)
        return places
