"""A whole optimiser step as one CUDA graph: for small batches, whose kernels are shorter than their launches.

The step is captured once, on buffers that stay where they are. Every later step copies its batch, its counted
random numbers and its learning rate into those buffers and replays the capture: the same kernels on the same
numbers, without the host's part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpdm_core.data.window import Batch
from hpdm_core.errors import ConfigError
from hpdm_core.families.base import Family, Phase
from hpdm_core.rng import BatchStreams
from hpdm_core.training.distributed import World

WARM_UP = 3
"""Steps that run as usual first: they compile, plan and allocate what a capture may not."""

Draw = tuple[str, str, tuple[int, ...]]
"""Kind, purpose and shape of one row of random numbers."""


class HeldStreams(BatchStreams):
    """Streams whose draws keep their place in memory: `redraw` puts the numbers of other rows there."""

    def __init__(self, seed: int, positions: Sequence[int], device: torch.device | str) -> None:
        super().__init__(seed, list(positions), device)
        object.__setattr__(self, "held", {})
        self.held: dict[Draw, Tensor]

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """See `BatchStreams.normal`."""
        return self._keep(("normal", purpose, tuple(shape)))

    def uniform(self, purpose: str, size: int) -> Tensor:
        """See `BatchStreams.uniform`."""
        return self._keep(("uniform", purpose, (size,)))

    def rows(self, index: Sequence[int]) -> BatchStreams:
        """See `BatchStreams.rows`. RuntimeError for some rows only: a replay would draw the numbers of the capture."""
        if list(index) != list(range(len(self.positions))):
            raise RuntimeError("the step draws for rows that follow from their positions")
        return self

    def redraw(self, positions: Sequence[int]) -> None:
        """Draw again, for the rows at `positions`, everything that was ever asked for."""
        assert isinstance(self.positions, list)
        self.positions[:] = positions
        for draw, buffer in self.held.items():
            buffer.copy_(self._drawn(draw))

    def _keep(self, draw: Draw) -> Tensor:
        if draw not in self.held:
            self.held[draw] = self._drawn(draw)
        return self.held[draw]

    def _drawn(self, draw: Draw) -> Tensor:
        kind, purpose, shape = draw
        return super().normal(purpose, shape) if kind == "normal" else super().uniform(purpose, shape[0])


class GraphedStep:
    """`compute` with its first WARM_UP calls as they are and all later ones replayed from a capture.

    `compute` takes (batch, streams, learning rate as a device scalar), does the whole step, update included, and
    returns its numbers. All batches must have the shapes of the first.
    """

    def __init__(
        self, compute: Callable[[Batch, BatchStreams, Tensor], Tensor], seed: int, device: torch.device
    ) -> None:
        self._compute, self._seed, self._device = compute, seed, device
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        """One step; its numbers stay valid until the next one."""
        if self._calls == 0:
            self._batch = batch.to(self._device)
            self._streams = HeldStreams(self._seed, batch.positions, self._device)
            self._lr = torch.full((), lr, device=self._device)
        else:
            copy_tensors(self._batch, batch)
            self._streams.redraw(batch.positions)
            self._lr.fill_(lr)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._beside()
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()
        return self._numbers

    def _beside(self) -> Tensor:
        """A step as usual, on the capture's own stream: autograd remembers where it saw a parameter first."""
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            numbers = self._compute(self._batch, self._streams, self._lr)
        main.wait_stream(self._stream)
        return numbers

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step, recorded and not run."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread only: the loader's pinning thread may call CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._numbers = self._compute(self._batch, self._streams, self._lr)
        except RuntimeError as error:
            raise ConfigError(
                f"the step of this model cannot be captured as a CUDA graph: {str(error).splitlines()[0]}",
                hint="set train.cuda_graph=false",
            ) from error
        return graph


def graph_obstacle(family: Family, phase: Phase, world: World, rows: int, micro_batch: int) -> str:
    """Why a CUDA graph cannot hold a step of `phase`, `rows` rows in micro-batches; empty where it can."""
    varying = family.varying(phase.name, micro_batch)
    reasons = {
        "it needs a GPU": world.device.type != "cuda",
        "it is for one process": world.size > 1,
        f"a step of {rows} rows in micro-batches of {micro_batch} is several passes": rows != micro_batch,
        f"in phase {phase.name}, {varying}": bool(varying),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def check_graphable(family: Family, phase: Phase, world: World, rows: int, micro_batch: int) -> None:
    """Raise ConfigError where there is a `graph_obstacle`."""
    reason = graph_obstacle(family, phase, world, rows, micro_batch)
    if reason:
        raise ConfigError(f"train.cuda_graph is not possible here: {reason}", hint="set train.cuda_graph=false")


def copy_tensors(held: Batch, batch: Batch) -> None:
    """Put the tensors of `batch` into those of `held`, in place."""
    held.labels.copy_(batch.labels, non_blocking=True)
    for old, new in ((held.videos, batch.videos), (held.meta, batch.meta), (held.text, batch.text)):
        for name, tensor in new.items():
            old[name].copy_(tensor, non_blocking=True)
