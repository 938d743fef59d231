"""CUDA graphs: capture a network call of static shapes once, then replay its kernels without the host's work.

Graphs are kept with the module whose weights they read, for as long as those weights stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

WARMUP_CALLS = 2


class Replay:
    """`function(*inputs)` on a CUDA device as a graph; later calls copy their inputs to its places.

    The result lies in the graph's memory: the next call overwrites it.
    pool: memory shared with other graphs, of which one at a time runs; their calls overwrite the result too.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor | None], pool: Any = None) -> None:
        self.inputs = _places(inputs, torch.clone)
        device = next(tensor.device for tensor in inputs if tensor is not None)
        # Without autocast's cache of cast weights: it is emptied where autocast ends, the graph stays.
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.cuda.device(device), torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARMUP_CALLS):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                self.result = function(*self.inputs)

    def __call__(self, inputs: Sequence[Tensor | None]) -> Any:
        """The result for `inputs`, which have the shapes and types of those it was captured with."""
        for place, tensor in zip(self.inputs, inputs, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        self.graph.replay()
        return self.result


@dataclass(frozen=True)
class Kept:
    """The graphs of one module whose weights lie at `weights`. What they hold only while they run is shared."""

    weights: tuple[int, ...]
    replays: dict[Hashable, Replay] = field(default_factory=dict)
    pool: Any = field(default_factory=lambda: torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None)


_kept: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def replayed(module: nn.Module, key: Hashable, function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> Any:
    """`function(*inputs)`, which reads the weights of `module`, captured at the first call with this key and shapes.

    key: tells functions of one module apart. The next call for this module, whatever its key, overwrites the
    result: use it before.
    """
    weights = tuple(p.data_ptr() for p in module.parameters())
    if module not in _kept or _kept[module].weights != weights:
        _kept[module] = Kept(weights)
    kept = _kept[module]
    modes = (torch.is_autocast_enabled("cuda"), torch.get_float32_matmul_precision())
    found = (key, _shapes(inputs), modes)
    if found not in kept.replays:
        kept.replays[found] = Replay(function, inputs, kept.pool)
    return kept.replays[found](inputs)


_rehearsed: ContextVar[dict[Hashable, list[Tensor | None]] | None] = ContextVar("rehearsed", default=None)


@contextmanager
def rehearsed_places() -> Iterator[None]:
    """Inside, `called` with `graphs` keeps places for the inputs and captures nothing: what a rehearsal counts."""
    token = _rehearsed.set({})
    try:
        yield
    finally:
        _rehearsed.reset(token)


def called(
    module: nn.Module, key: Hashable, function: Callable[..., Any], inputs: Sequence[Tensor | None], *, graphs: bool
) -> Any:
    """`function(*inputs)`; with `graphs` and inputs on a GPU `replayed`, and so overwritten by the next call."""
    on_gpu = any(tensor is not None and tensor.is_cuda for tensor in inputs)
    if graphs and on_gpu:
        return replayed(module, key, function, inputs)
    if graphs and (kept := _rehearsed.get()) is not None and (found := (module, key, _shapes(inputs))) not in kept:
        kept[found] = _places(inputs, torch.empty_like)  # pages that nobody touches take no memory
    return function(*inputs)


def _places(inputs: Sequence[Tensor | None], make: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    return [None if tensor is None else make(tensor) for tensor in inputs]


def _shapes(inputs: Sequence[Tensor | None]) -> Hashable:
    return tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs)
