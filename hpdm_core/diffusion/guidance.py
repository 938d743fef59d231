"""Classifier-free guidance, as arithmetic on clean estimates.

Guidance is linear in the network's output and the clean estimate is affine in it, so guiding either
is the same. Weight 1 is the plain conditional model, 0 the unconditional one.
"""

from __future__ import annotations

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """unconditional + weight * (conditional - unconditional)."""
    return unconditional + weight * (conditional - unconditional)


def dynamic_threshold(clean_BX: Tensor, quantile: float) -> Tensor:
    """Clean estimates clipped at the `quantile` of their own size, and scaled back to [-1, 1] where that is more.

    Strong guidance drives pixels out of range; this brings a row back without flattening it (Imagen, §2.3).
    """
    size = clean_BX.flatten(1).abs().float()
    # kthvalue, because torch.quantile refuses rows of more than 2^24 numbers.
    reach = size.kthvalue(max(1, round(quantile * size.shape[1])), dim=1).values.clamp_min(1.0)
    reach = reach.view(-1, *[1] * (clean_BX.ndim - 1))
    return clean_BX.clamp(-reach, reach) / reach
