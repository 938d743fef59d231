"""LAMB: Adam's direction, rescaled per tensor so that every weight matrix moves in proportion to its norm.

Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2.

Why not timm's: it cannot drop one step without asking the device first (the non-finite guard needs that),
it clips by a second global norm inside, and it takes one reduction per tensor when weights are sharded. Its
import also loads torchvision, which took 3.5 s. This one is torch's fused Adam kernel followed by the trust
ratio; a test holds it to timm's results.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from hpdm_core.training.adam import fused_step, zero_moments


class Lamb(Optimizer):
    """LAMB over parameter groups; a group with `adapt: False` (biases, norms) gets plain Adam updates.

    Setting `found_inf` to a device scalar before `step` makes that step a no-op on the device where it is 1:
    weights, moments and counters stay. Gradients are expected to be clipped already.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5.0e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1.0e-6,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Lamb takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)

    def _step_group(self, group: dict[str, Any], params: Sequence[Tensor]) -> None:
        weights = [_local(p) for p in params]
        updates = self._adam_updates(group, params)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=-group["weight_decay"])
        # The kernel has left the moments alone where a step is dropped; a zero rate leaves the weights alone as well.
        rate = torch.ones((), device=updates[0].device).mul_(group["lr"])
        if self.found_inf is not None:
            rate = rate * (1.0 - self.found_inf)
        if group["adapt"]:
            ratios = _trust_ratios(weights, updates, like=params[0]).mul_(rate)
            # One pass and one launch per tensor: a foreach product with many factors on the device is no better.
            for weight, update, ratio in zip(weights, updates, ratios.unbind(), strict=True):
                weight.addcmul_(update, ratio)
        else:
            torch._foreach_mul_(updates, rate)
            torch._foreach_add_(weights, updates)

    def _adam_updates(self, group: dict[str, Any], params: Sequence[Tensor]) -> list[Tensor]:
        """Minus Adam's bias-corrected direction: what the kernel makes of zeros at rate 1."""
        updates = _zeros([_local(p) for p in params])
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state.update(zero_moments(p))
        fused_step(
            updates,
            [_local(p.grad) for p in params if p.grad is not None],
            [{key: _local(value) for key, value in state.items()} for state in states],
            group,
            lr=1.0,
            weight_decay=0.0,
            found_inf=self.found_inf,
        )
        return updates


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _zeros(like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros in the shapes of `like`, parts of one allocation: hundreds of small fills would each be a launch."""
    # Parts begin at multiples of 16 bytes, where the fused kernels can read four numbers at once.
    sizes = [-(-tensor.numel() // 4) * 4 for tensor in like]
    parts = torch.zeros(sum(sizes), dtype=like[0].dtype, device=like[0].device).split(sizes)
    return [part[: tensor.numel()].view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _trust_ratios(weights: list[Tensor], updates: list[Tensor], like: Tensor) -> Tensor:
    """|w| / |update| per tensor as one vector; 1 where either norm is zero."""
    squares = torch.stack([torch.stack(torch._foreach_norm(group)) for group in (weights, updates)]).square_()
    if isinstance(like, DTensor):
        for axis, placement in enumerate(like.placements):
            if placement.is_shard():
                dist.all_reduce(squares, group=like.device_mesh.get_group(axis))
    weight_norm, update_norm = squares.sqrt_().unbind()
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, weight_norm / update_norm, torch.ones_like(weight_norm))
