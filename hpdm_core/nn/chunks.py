"""Rows through a network in chunks of one fixed size, so that a row's result depends on no other row.

Kernels choose their arithmetic by the shape of the batch. Sampling that must give the same video whatever
is made beside it therefore always runs the same shape, the last chunk padded with copies of its last row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_chunks(function: Callable[..., Tensor], size: int, *inputs: Tensor | None) -> Tensor:
    """`function(*inputs)` row by row of dim 0, `size` rows at a time. None inputs are passed on as they are."""
    num_rows = next(len(tensor) for tensor in inputs if tensor is not None)
    outputs = []
    for start in range(0, num_rows, size):
        rows = range(start, start + size)
        part = [None if tensor is None else _take(tensor, rows) for tensor in inputs]
        outputs.append(function(*part)[: num_rows - start])
    return torch.cat(outputs)


def _take(tensor: Tensor, rows: range) -> Tensor:
    """The rows of `tensor`, its last one repeated for those beyond its end."""
    part = tensor[rows.start : rows.stop]
    missing = len(rows) - len(part)
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
