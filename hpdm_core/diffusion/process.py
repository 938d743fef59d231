"""Scaled diffusion: u = x / s + sigma * eps, one formula for every family.

`s` is a component's input scale (sigma_in of Snap Video's scaled EDM, HPDM spec §2.2). Multiplying u by
c_in = 1 / sqrt(1 / s**2 + sigma**2) gives the variance-preserving state z = alpha x + beta eps with

    logSNR = -2 ln(sigma) - 2 ln(s):

a per-component shift of the schedule. HPDM's "exponentially smaller input scaling per level" and
matryoshka diffusion's shifted schedule are this same knob; s = 1 is ordinary diffusion.

A parametrisation says what the network's output means. With sigma_data = d the formulas are those of
HPDM spec §2.2; elsewhere d = 1. Shapes: x, u, eps, output are [B, ...] alike; sigma is [B] or a float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Output = Literal["edm_v", "v", "eps", "x"]


def corrupt(x: Tensor, eps: Tensor, sigma: Tensor, scale: float) -> Tensor:
    """The noisy state u = x / s + sigma * eps."""
    return x / scale + _rows(sigma, x) * eps


@dataclass(frozen=True)
class Parametrisation:
    """What a network of one component predicts, and how its error is weighted.

    output: `edm_v` is HPDM's: v-prediction with the *unscaled* coefficients, normalised to unit variance;
    `v` uses the shifted alpha and beta (matryoshka diffusion); `eps`; `x`.
    weighting: `edm` is 1/d² + 1/sigma² on the clean estimate; `output` is 1 on the output;
    `eps` measures the error of the implied noise.
    """

    output: Output = "edm_v"
    weighting: Literal["edm", "output", "eps"] = "edm"
    scale: float = 1.0
    sigma_data: float = 1.0

    def network_input(self, u: Tensor, sigma: Tensor | float) -> Tensor:
        """c_in * u: unit variance for data of standard deviation `sigma_data`."""
        sig = _rows(sigma, u)
        return u * (self.sigma_data**2 / self.scale**2 + sig**2).rsqrt()

    def target(self, x: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
        """What the network should output for clean x and noise eps."""
        sig = _rows(sigma, x)
        if self.output == "edm_v":
            d = self.sigma_data
            return (d**2 * eps - sig * x) / (d * (sig**2 + d**2).sqrt())
        if self.output == "v":
            alpha, beta = self._vp(sig)
            return alpha * eps - beta * x
        return eps if self.output == "eps" else x

    def denoised(self, u: Tensor, output: Tensor, sigma: Tensor | float) -> Tensor:
        """The clean estimate D(u), in units of x (not divided by s)."""
        sig, s, d = _rows(sigma, u), self.scale, self.sigma_data
        if self.output == "edm_v":
            bottom = d**2 + s * sig**2
            return (s * d**2 / bottom) * u - (s * sig * d * (sig**2 + d**2).sqrt() / bottom) * output
        if self.output == "v":
            alpha, beta = self._vp(sig)
            return alpha * (alpha * s * u) - beta * output
        return s * (u - sig * output) if self.output == "eps" else output

    def weight(self, sigma: Tensor) -> Tensor:
        """Factor on the squared error of the output, same shape as sigma."""
        if self.weighting == "output":
            return torch.ones_like(sigma)
        per_output = self._output_gain(sigma)
        if self.weighting == "edm":
            return (1 / self.sigma_data**2 + 1 / sigma**2) * per_output**2
        return per_output**2 / (self.scale * sigma) ** 2

    def _output_gain(self, sigma: Tensor) -> Tensor:
        """|d D / d output|: how much an error of the output moves the clean estimate."""
        one = torch.ones_like(sigma)
        return (self.denoised(0 * one, one, sigma) - self.denoised(0 * one, 0 * one, sigma)).abs()

    def _vp(self, sig: Tensor) -> tuple[Tensor, Tensor]:
        """alpha, beta of the unit-variance state; beta / alpha = s * sigma."""
        ratio = self.scale * sig
        alpha = (1 + ratio**2).rsqrt()
        return alpha, ratio * alpha


def _rows(sigma: Tensor | float, like: Tensor) -> Tensor:
    """sigma as a tensor that broadcasts over the non-batch axes of `like`."""
    if not isinstance(sigma, Tensor):
        # On the CPU, where kernels take it as a number: a copy to a GPU would make the host wait.
        return torch.tensor(sigma, dtype=like.dtype)
    tensor = sigma.to(like)
    return tensor.view(-1, *(1,) * (like.ndim - 1)) if tensor.ndim == 1 and like.ndim > 1 else tensor
