"""Classifier-free guidance, as arithmetic on clean estimates.

Guidance is linear in the network's output and the clean estimate is affine in it, so guiding either
is the same. Weight 1 is the plain conditional model, 0 the unconditional one.
"""

from __future__ import annotations

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """unconditional + weight * (conditional - unconditional)."""
    return unconditional + weight * (conditional - unconditional)
