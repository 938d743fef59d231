"""LAMB's two passes over all weights of a group, each one Triton kernel: 40 bytes a number, where torch moves 72.

The first pass takes gradients into the moments and sums the squares of weights and directions; the second makes the
directions again from the moments, which costs less than keeping them, and moves the weights. A program works on one
chunk of one tensor, whose place in memory it reads from a table, as torch's own fused optimisers do.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)
# ruff: noqa: ANN001, ANN202
# (what kernels take is typed by Triton's compiler)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = tl.constexpr(2048)
LAUNCH: dict[str, Any] = {"num_warps": 8}
"""Numbers that one program works on, and its warps: 2.5 ms for HPDM-M's 181 million on an H100, 2.9 TB/s.
1,024 to 4,096 numbers are within 3 % of each other on 8 warps; 8,192 on 4 warps spill registers and take 4.4 ms."""


class LambKernels:
    """The passes over tensors of `sizes` numbers each, all contiguous, in fp32 and on `device`."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        counts = [-(-size // CHUNK.value) for size in sizes]
        owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(counts))
        firsts = torch.cumsum(torch.tensor([0, *counts[:-1]]), 0)
        within = torch.arange(sum(counts)) - firsts[owners]
        self._owners = owners.int().to(device)
        self._within = within.int().to(device)
        self._sizes = torch.tensor(sizes).to(device)
        # A row for each tensor and a column for each of its chunks: summed in one order, whatever ran first.
        self._sums = torch.zeros(2, len(sizes), max(counts), device=device)
        self._table = torch.zeros(4, len(sizes), dtype=torch.int64, device=device)
        self._addresses: list[list[int]] = []
        self._in_graph = False
        # A capture may not pin memory, and copies at every replay from what was pinned before.
        self._pinned = self._host_table() if device.type == "cuda" else None

    def first(
        self, tensors: Sequence[Sequence[Tensor]], biases: Tensor, scalars: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """Take the gradients into the moments; returns the sums of squares [weights and directions, tensor].

        tensors: weights, gradients, first and second moments. biases: Adam's corrections [first and second, tensor].
        scalars: rate, factor of the gradients, 0 where nothing may change and else 1.
        options: beta1, beta2, eps, decay.
        """
        self._point_at(tensors)
        _first[self._grid](
            self._table, self._owners, self._within, self._sizes, biases, scalars, self._sums,
            len(self._sizes), self._sums.shape[2], **options, **LAUNCH,
        )  # fmt: skip
        return self._sums.sum(dim=2)

    def second(self, ratios: Tensor, biases: Tensor, scalars: Tensor, options: dict[str, Any]) -> None:
        """Move every weight against its direction by rate x `ratios` of its tensor."""
        given = {key: value for key, value in options.items() if not key.startswith("beta")}
        _second[self._grid](
            self._table, self._owners, self._within, self._sizes, biases, scalars, ratios,
            len(self._sizes), **given, **LAUNCH,
        )  # fmt: skip

    def try_out(self) -> None:
        """Both passes over tensors made for it; raises what Triton raises where it does not work."""
        device = self._owners.device
        tensors = [[torch.ones(int(size), device=device) for size in self._sizes] for _ in self._table]
        biases = torch.ones(2, len(self._sizes), device=device)
        options = {"beta1": 0.5, "beta2": 0.5, "eps": 1.0, "decay": 0.5}
        with torch.cuda.device_of(biases):
            ratios = self.first(tensors, biases, torch.ones(3, device=device), options)[0]
            self.second(ratios, biases, torch.ones(3, device=device), options)

    @property
    def _grid(self) -> tuple[int]:
        return (len(self._owners),)

    def _point_at(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """Tell the kernels where the tensors lie, if that has changed."""
        addresses = [[tensor.data_ptr() for tensor in group] for group in tensors]
        capturing = self._pinned is not None and torch.cuda.is_current_stream_capturing()
        self._in_graph = self._in_graph or capturing
        if addresses == self._addresses and not self._in_graph:
            return  # a graph brings its own at every replay, and so does a step beside it
        host = self._pinned if capturing and self._pinned is not None else self._host_table()
        host.copy_(torch.tensor(addresses))
        self._table.copy_(host, non_blocking=True)
        self._addresses = addresses

    def _host_table(self) -> Tensor:
        return torch.empty(self._table.shape, dtype=torch.int64, pin_memory=self._table.is_cuda)


@triton.jit
def _direction(w, m, v, biases, owner, tensors, eps, decay):
    """Adam's direction with the decay added: what LAMB calls r + lambda x."""
    m_hat = m / tl.load(biases + owner)
    v_hat = v / tl.load(biases + tensors + owner)
    return m_hat / (tl.sqrt(v_hat) + eps) + decay * w


@triton.jit
def _numbers(table, row, tensors, owner, at):
    """Pointers to numbers `at` of tensor `owner` in row `row` of the table."""
    return tl.load(table + row * tensors + owner).to(tl.pointer_type(tl.float32)) + at


@triton.jit
def _inside(sizes, scalars, owner, at):
    """Which numbers there are to work on: none where the step is dropped."""
    return at < tl.load(sizes + owner) * tl.load(scalars + 2).to(tl.int64)


@triton.jit
def _first(
    table, owners, within, sizes, biases, scalars, sums, tensors, columns, beta1, beta2, eps, decay,
):  # fmt: skip
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    column = tl.load(within + chunk)
    at = column.to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    inside = _inside(sizes, scalars, owner, at)
    w = tl.load(_numbers(table, 0, tensors, owner, at), mask=inside, other=0.0)
    g = tl.load(_numbers(table, 1, tensors, owner, at), mask=inside, other=0.0) * tl.load(scalars + 1)
    m_at, v_at = _numbers(table, 2, tensors, owner, at), _numbers(table, 3, tensors, owner, at)
    m = tl.load(m_at, mask=inside, other=0.0)
    v = tl.load(v_at, mask=inside, other=0.0)
    m += (1.0 - beta1) * (g - m)
    v = beta2 * v + (1.0 - beta2) * g * g
    tl.store(m_at, m, mask=inside)
    tl.store(v_at, v, mask=inside)
    u = _direction(w, m, v, biases, owner, tensors, eps, decay)
    place = sums + owner * columns + column
    tl.store(place, tl.sum(w * w, axis=0))
    tl.store(place + tensors * columns, tl.sum(tl.where(inside, u * u, 0.0), axis=0))


@triton.jit
def _second(
    table, owners, within, sizes, biases, scalars, ratios, tensors, eps, decay,
):  # fmt: skip
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    at = tl.load(within + chunk).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    inside = _inside(sizes, scalars, owner, at)
    w_at = _numbers(table, 0, tensors, owner, at)
    w = tl.load(w_at, mask=inside, other=0.0)
    m = tl.load(_numbers(table, 2, tensors, owner, at), mask=inside, other=0.0)
    v = tl.load(_numbers(table, 3, tensors, owner, at), mask=inside, other=0.0)
    u = _direction(w, m, v, biases, owner, tensors, eps, decay)
    tl.store(w_at, w - tl.load(scalars) * tl.load(ratios + owner) * u, mask=inside)
