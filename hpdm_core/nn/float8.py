"""Linear layers whose large products run in float8 (e4m3), an option for GPUs that have it (Hopper and later).

Every row of a product's left side and every column of its right side gets its own scale, found anew each time, so
that nothing depends on the past. The output and the gradient of the input are computed in float8, the gradient of the
weight in bf16: a sum over a whole batch of tokens deserves it, and its scales would lie along the other axis.

Shapes: N rows, I inputs, O outputs of a layer.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 1024
"""Layers narrower than this on either side stay as they are: casts would cost more than the product saves."""

LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Float8Linear(nn.Linear):
    """`nn.Linear` under bf16 autocast with float8 products; elsewhere the plain one."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] to bf16 [..., O]."""
        return self.product(input, self.weight, self.bias)

    @staticmethod
    def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """`F.linear`, in float8 under bf16 autocast."""
        if not torch.is_autocast_enabled(x.device.type):
            return F.linear(x, weight_OI, bias_O)
        rows = x.to(torch.bfloat16).flatten(0, -2)
        product: Tensor = _Float8Product.apply(rows, weight_OI.to(torch.bfloat16))  # type: ignore[assignment]
        output = product if bias_O is None else product + bias_O.to(torch.bfloat16)
        return output.unflatten(0, x.shape[:-1])


def use_float8(modules: Iterable[nn.Module]) -> None:
    """Turn every large enough linear layer in `modules` into a `Float8Linear`, in place; names and weights stay."""
    for module in modules:
        for layer in module.modules():
            if type(layer) is nn.Linear and min(layer.weight.shape) >= SMALLEST:
                layer.__class__ = Float8Linear


class _Float8Product(torch.autograd.Function):
    """x W^T, both bf16."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _product(x_NI, weight_OI)

    @staticmethod
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x_NI, weight_OI = ctx.saved_tensors
        return _product(gradient_NO, weight_OI.t()), gradient_NO.t() @ x_NI


def _product(a_NK: Tensor, b_MK: Tensor) -> Tensor:
    """a b^T in bf16, from both rounded to float8."""
    a, a_scale = _rounded(a_NK)
    b, b_scale = _rounded(b_MK)
    return torch._scaled_mm(a, b.t(), a_scale, b_scale.t().contiguous(), out_dtype=torch.bfloat16, use_fast_accum=True)


def _rounded(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(float8 [N, K], float32 [N, 1]): values and what to multiply each row by to get x back."""
    scale_N1 = x_NK.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    return (x_NK.float() / scale_N1).to(torch.float8_e4m3fn).contiguous(), scale_N1
