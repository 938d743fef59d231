"""Adam's moments and torch's fused kernel for them, as the optimisers share them."""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam


def zero_moments(param: Tensor) -> dict[str, Tensor]:
    """The state of one parameter before its first step, in the layout of torch's fused Adam."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=param.device),
        "exp_avg": torch.zeros_like(param),
        "exp_avg_sq": torch.zeros_like(param),
    }


def fused_step(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]],
    group: Mapping[str, Any], *, lr: float | Tensor, weight_decay: float, found_inf: Tensor | None,
) -> None:  # fmt: skip
    """One step of AdamW in place with the group's `betas` and `eps`; none, moments included, where `found_inf` is 1."""
    adam(
        list(weights),
        list(gradients),
        [s["exp_avg"] for s in states],
        [s["exp_avg_sq"] for s in states],
        [],
        [s["step"] for s in states],
        fused=True,
        grad_scale=None,
        found_inf=found_inf,
        amsgrad=False,
        maximize=False,
        lr=lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        weight_decay=weight_decay,
        decoupled_weight_decay=True,
    )
