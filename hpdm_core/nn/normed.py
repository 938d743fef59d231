"""A LayerNorm followed by a linear layer, as one map: cheaper to train than the two apart.

    W (g * n + s) + b  =  (W * g) n + (W s + b)         n: x normalised, g and s: the norm's scale and shift

On the right the scale and shift act on the weights, not on every token: their gradients come out of the weight's
gradient, where on the left they are sums over all tokens, each another pass over the largest tensors of the network.
Two norms of one tensor share n as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.nn.float8 import Float8Mlp


def normed_linear(norm: nn.LayerNorm, linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(norm(x))`; in compiled training by the right-hand side, whose small products then cost nothing."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        return folded_linear(norm, linear, x)
    return linear(norm(x))


def folded_linear(norm: nn.LayerNorm, linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(norm(x))` by the right-hand side."""
    return F.linear(_normalised(norm, x), *_folded(norm, linear))


def normed_mlp(norm: nn.LayerNorm, mlp: nn.Sequential, x: Tensor) -> Tensor:
    """`mlp(norm(x))` of an MLP that begins with a linear layer; in training by float8 products if it has them."""
    first, *rest = mlp
    assert isinstance(first, nn.Linear)
    if isinstance(mlp, Float8Mlp) and torch.is_grad_enabled() and torch.is_autocast_enabled(x.device.type):
        return mlp.product(_normalised(norm, x), *_folded(norm, first))
    x = normed_linear(norm, first, x)
    for layer in rest:
        x = layer(x)
    return x


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def _folded(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of `linear` that act on what is normalised."""
    bias = (linear.weight * norm.bias).sum(dim=1)
    return linear.weight * norm.weight, bias if linear.bias is None else bias + linear.bias
