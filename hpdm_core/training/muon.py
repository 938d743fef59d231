"""Muon: every weight matrix moves by its momentum made orthogonal, so that all directions learn at one rate.

Sources: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (the iteration and its
coefficients); Liu et al. 2025, "Muon is scalable for LLM training", section 2.2 (decay, and the factor that makes
an update as large as Adam's, so that learning rates carry over).

Why not torch's: it cannot drop one step without asking the device first, takes no learning rate from the device,
which a CUDA graph needs, and launches twenty kernels for every matrix. This one takes all matrices of a shape at once;
a test holds it to torch's results.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpdm_core.training.adam import fused_step

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pulls singular values to between 0.7 and 1.2, as fast as five steps can."""
ITERATIONS = 5
ADAM_SIZE = 0.2
"""Root mean square of an Adam update at rate 1, as measured by Liu et al."""


@dataclass
class _Stack:
    """All weights of one shape with their momentum, [N, *shape]."""

    params: list[Tensor]
    momentum: Tensor


class Muon(Optimizer):
    """Muon over parameter groups; a group with `matrix: False` (vectors, embedding tables) gets AdamW.

    A convolution's kernel counts as the matrix [outputs, everything else].

    Setting `found_inf` to a device scalar before `step` makes that step a no-op on the device where it is 1. Gradients
    are expected to be clipped already, and there for every matrix; weights are whole on every rank. State is read in
    place: `load_state_dict` would cut it loose from the stacks that are stepped.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1.0e-8,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "matrix": True})
        self._stacks = {id(group): self._stacked(group) for group in self.param_groups if group["matrix"]}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter; of those outside matrix groups, every one that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            if group["matrix"]:
                for stack in self._stacks[id(group)]:
                    self._step_matrices(group, stack)
            else:
                self._step_others(group)

    def _stacked(self, group: dict[str, Any]) -> list[_Stack]:
        """The group's matrices by shape; each one's state is a view of its stack's momentum."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for param in group["params"]:
            by_shape.setdefault(param.shape, []).append(param)
        stacks = []
        for params in by_shape.values():
            stack = _Stack(params, params[0].detach().new_zeros(len(params), *params[0].shape))
            for param, momentum in zip(params, stack.momentum.unbind(), strict=True):
                self.state[param]["momentum"] = momentum
            stacks.append(stack)
        return stacks

    def _step_matrices(self, group: dict[str, Any], stack: _Stack) -> None:
        gradients = torch.stack([param.grad for param in stack.params])  # type: ignore[misc]
        share = torch.full((), 1.0 - group["momentum"], device=gradients.device)
        rate = torch.ones((), device=gradients.device).mul_(group["lr"])
        if self.found_inf is not None:
            good = 1.0 - self.found_inf
            # Not a product: 0 times a gradient that is not a number would not be 0.
            gradients = torch.where(good > 0, gradients, 0.0)
            share, rate = share * good, rate * good
        stack.momentum.lerp_(gradients, share)
        ahead = gradients.lerp_(stack.momentum, group["momentum"])  # Nesterov's look ahead
        matrices = ahead.flatten(2)  # a kernel's row is what one output is summed from
        updates = orthogonal(matrices) * (rate * ADAM_SIZE * math.sqrt(max(matrices.shape[1:])))
        updates = updates.view_as(ahead)
        torch._foreach_mul_(stack.params, 1.0 - rate * group["weight_decay"])
        torch._foreach_sub_(stack.params, list(updates.unbind()))

    def _step_others(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if params:
            fused_step(
                params,
                [p.grad for p in params],
                [self.state[p] for p in params],
                group,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                found_inf=self.found_inf,
            )


def orthogonal(matrices_NRC: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows (or columns, where those are fewer), roughly: 5 Newton-Schulz steps.

    Singular values come out between about 0.7 and 1.2, which serves as well as 1. On a GPU products are in bf16. A
    matrix of zeros stays one.
    """
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    x = x.bfloat16() if x.is_cuda else x
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_NRC.dtype)
