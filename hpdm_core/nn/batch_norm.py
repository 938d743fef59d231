"""Batch norm over the micro-batch of all ranks, so that as many videos make the same step on any number of them.

PyTorch's SyncBatchNorm does the same, on GPUs alone. This one is plain tensor operations and two small collectives, on
whatever device and backend the ranks have: what is tested on CPUs is what trains on GPUs.

Shapes: B batch, C channels, then any axes of places.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """Each channel normalised by its statistics over batch and places, then scaled and shifted; none are kept.

    Where several ranks are joined, every one must call it, as often as the others and with as many rows. Its gradients
    are those of the ranks' summed losses, whose mean DDP takes.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        along = (-1, *[1] * (x.dim() - 2))
        centred = x - _MeanOverRanks.apply(x.mean(axes)).view(along)
        variance = _MeanOverRanks.apply(centred.square().mean(axes))
        gain = self.weight * (variance + self.eps).rsqrt()
        return centred * gain.view(along) + self.bias.view(along)


class _MeanOverRanks(torch.autograd.Function):
    """The mean of every rank's tensor; a rank's gradient is the mean of what all ranks' losses say about it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _mean_over_ranks(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _mean_over_ranks(grads[0])


def _mean_over_ranks(values: Tensor) -> Tensor:
    shared = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(shared)
    return shared / dist.get_world_size()
