"""MLPs behind a norm whose large products run in float8, an option for GPUs that have it (Ada, Hopper and later).

    y = gelu(x A^T + a) B^T + b        x: normalised over its width I

A float8 product is worth it only if rounding costs no passes over memory of its own. So nothing is measured where
sizes are known: |x| is at most sqrt(I), which e4m3 (2^-9 to 448) holds as it is, and so does it what GELU lets through
(cut at 448, which would take rows of weights of a norm above 14). Gradients have no natural size; e5m2 spans 2^32,
which forgives a rough scale, and a sample of the rows gives that. Outputs and gradients of inputs are in float8;
gradients of weights, which are sums over all tokens of a batch, in bf16.

Shapes: N rows, I inputs, H hidden and O outputs of an MLP.
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
"""MLPs narrower than this at any layer stay as they are: casts would cost more than the products save."""

STRIDE = 61
"""One row in so many tells the size of a gradient; prime, so that rows of all places in a patch are among them."""

LARGEST_SEEN = 2.0**8
"""At most this the largest gradient in the sample becomes: 2^7.8 below e5m2's largest number, 2^24 above its least."""

LARGEST_WEIGHT = 2.0**8
"""At most this the largest weight becomes; e4m3 ends at 448."""


class Float8Mlp(nn.Sequential):
    """Linear, GELU, Linear, with float8 products where `normed_mlp` trains it under bf16 autocast."""

    def product(self, x: Tensor, up_HI: Tensor, up_bias_H: Tensor) -> Tensor:
        """bf16 [..., O] of normalised x [..., I], by the first layer's weights as given (the norm's folded in)."""
        down: nn.Linear = self[2]  # type: ignore[assignment]
        tensors = (x.flatten(0, -2), up_HI, up_bias_H, down.weight, down.bias)
        y: Tensor = _Float8Mlp.apply(*(t.to(torch.bfloat16) for t in tensors))  # type: ignore[assignment]
        return y.unflatten(0, x.shape[:-1])


def use_float8(modules: Iterable[nn.Module]) -> int:
    """Turn every wide enough MLP in `modules` into a `Float8Mlp`, in place; names and weights stay. How many."""
    wide = [mlp for module in modules for mlp in module.modules() if type(mlp) is nn.Sequential and _is_wide(mlp)]
    for mlp in wide:
        mlp.__class__ = Float8Mlp
    return len(wide)


def _is_wide(mlp: nn.Sequential) -> bool:
    match list(mlp):
        case [nn.Linear() as up, nn.GELU(approximate="tanh"), nn.Linear() as down]:
            widths = (*up.weight.shape, *down.weight.shape)
            aligned = all(width % 16 == 0 for width in widths)
            return min(widths) >= SMALLEST and aligned and up.bias is not None and down.bias is not None
    return False


class _Float8Mlp(torch.autograd.Function):
    """All in bf16: x [N, I], A [H, I], a [H], B [O, H], b [O] to y [N, O]."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, up_HI: Tensor, up_bias_H: Tensor, down_OH: Tensor, down_bias_O: Tensor
    ) -> Tensor:
        hidden_NH = _product(_as_it_is(x_NI), up_HI, up_bias_H)
        ctx.save_for_backward(x_NI, hidden_NH, up_HI, down_OH)
        return _product(_as_it_is(_gelu(hidden_NH)), down_OH, down_bias_O)

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x_NI, hidden_NH, up_HI, down_OH = ctx.saved_tensors
        dy_NO = dy_NO.contiguous()
        active_NH = _product(_by_sample(dy_NO, dy_NO), down_OH.t())
        dhidden_NH = torch.ops.aten.gelu_backward(active_NH, hidden_NH, approximate="tanh")
        # The scale is that of what GELU's derivative (at most 1.13) is still to be multiplied with, so that one kernel
        # can make both the product and its float8 copy.
        dhidden = _by_sample(dhidden_NH, active_NH)
        del active_NH
        dx_NI = _product(dhidden, up_HI.t())
        down_gradient, up_gradient = dy_NO.t() @ _gelu(hidden_NH), dhidden_NH.t() @ x_NI
        return dx_NI, up_gradient, dhidden_NH.sum(0), down_gradient, dy_NO.sum(0)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _product(rounded_a: tuple[Tensor, Tensor], b_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """a b^T + bias in bf16, of a [N, K] as rounded to float8 with its scale, and of bf16 b, rounded here."""
    a_NK, a_scale = rounded_a
    b_scale = _power_of_two(b_MK) / LARGEST_WEIGHT
    b_KM = _rounded(b_MK, b_scale, torch.float8_e4m3fn).contiguous().t()
    return torch._scaled_mm(a_NK, b_KM, a_scale, b_scale, bias=bias_M, out_dtype=torch.bfloat16, use_fast_accum=True)


def _as_it_is(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x in e4m3, 1)."""
    one = torch.ones((), device=x.device)
    return _rounded(x, one, torch.float8_e4m3fn), one


def _by_sample(x_NK: Tensor, like_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(x in e5m2, what to multiply it by to get x back): the latter from some rows of `like`.

    An infinity beside those rows is cut as well: the gradients of weights, which are in bf16, still show it.
    """
    scale = _power_of_two(like_NK[::STRIDE]) / LARGEST_SEEN
    return _rounded(x_NK, scale, torch.float8_e5m2), scale


def _power_of_two(x: Tensor) -> Tensor:
    """float32: the least one that no |x| exceeds; division by it is exact in bf16."""
    return x.abs().amax().float().clamp_min(1e-20).log2().ceil().exp2()


def _rounded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x / scale in a float8 dtype; what is too large becomes its largest number (a plain cast gives inf or NaN)."""
    largest = torch.finfo(dtype).max
    return (x / scale.to(x.dtype)).clamp_(-largest, largest).to(dtype)
