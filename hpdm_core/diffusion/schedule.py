"""Noise schedules: how sigma is drawn in training and which grid sampling walks.

All of them speak sigma of the *scaled* process u = x / s + sigma * eps (see `process.py`), so one schedule
serves every component whatever its input scale s. For a variance-preserving table, sigma is
sqrt(1 - abar) / sqrt(abar), i.e. logSNR = -2 ln(sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hpdm_core.errors import ConfigError


class Schedule(Protocol):
    """A distribution of sigma for training, grids for sampling, and the network's noise coordinate."""

    def draw(self, uniform: Tensor) -> Tensor:
        """Training noise levels from uniform numbers in [0, 1), any shape."""
        ...

    def grid(self, num_steps: int) -> Tensor:
        """float64 [num_steps + 1], decreasing, ending in 0."""
        ...

    def coordinate(self, sigma: Tensor) -> Tensor:
        """The scalar that the network's noise embedding reads; order one in size."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """EDM's training distribution, ln(sigma) ~ N(mean, std), and Karras' rho grid.

    HPDM does not print its p(sigma); these are EDM's constants, which Snap Video (same authors) keeps.
    """

    mean: float = -1.2
    std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def draw(self, uniform: Tensor) -> Tensor:
        """Inverse-CDF draws, so that stratified uniforms give stratified noise levels."""
        normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6).double())
        return (self.mean + self.std * normal).exp().to(uniform.dtype)

    @property
    def low(self) -> float:
        """Two standard deviations below the mean: training saw less noise in 2.3 % of its draws."""
        return math.exp(self.mean - 2 * self.std)

    def grid(self, num_steps: int) -> Tensor:
        """Karras et al. 2022, eq. 5; one step is sigma_max -> 0."""
        ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.cat([(high + ramp * (low - high)) ** self.rho, torch.zeros(1, dtype=torch.float64)])

    def coordinate(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4, as in EDM."""
        return sigma.clamp_min(1e-10).log() / 4


@dataclass(frozen=True)
class DiscreteTable:
    """A variance-preserving schedule of `num_times` discrete times, given by its cumulative signal power.

    `abar` is [num_times] float64, decreasing in (0, 1). Sampling grids take evenly spaced times.
    """

    abar: tuple[float, ...]
    _sigmas: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sigmas(self, device: torch.device | str = "cpu") -> Tensor:
        """sqrt((1 - abar) / abar), float64 [num_times], increasing.

        Copied to a device once: a copy at every call would wait for it, and a CUDA graph may hold none.
        """
        device = torch.device(device)
        if device not in self._sigmas:
            abar = torch.tensor(self.abar, dtype=torch.float64, device="cpu")
            self._sigmas[device] = ((1 - abar) / abar).sqrt().to(device)
        return self._sigmas[device]

    def draw(self, uniform: Tensor) -> Tensor:
        """Uniform discrete times."""
        index = (uniform.double() * len(self.abar)).long().clamp_max(len(self.abar) - 1)
        return self.sigmas(uniform.device)[index].to(uniform.dtype)

    def grid(self, num_steps: int) -> Tensor:
        """Evenly spaced times from the last to the first (`leading` spacing is not used: it never sees T-1).

        Raises ConfigError for more steps than there are times.
        """
        if num_steps > len(self.abar):
            raise ConfigError(
                f"{num_steps} sampling steps from a noise schedule of {len(self.abar)} times",
                hint=f"take at most {len(self.abar)} steps",
            )
        times = torch.linspace(len(self.abar) - 1, 0, num_steps, dtype=torch.float64).round().long()
        return torch.cat([self.sigmas()[times], torch.zeros(1, dtype=torch.float64)])

    def coordinate(self, sigma: Tensor) -> Tensor:
        """The (fractional) discrete time of sigma, divided by the number of times."""
        table = self.sigmas(sigma.device).log()
        target = sigma.double().clamp_min(1e-10).log()
        upper = torch.searchsorted(table, target.contiguous()).clamp(1, len(self.abar) - 1)
        low, high = table[upper - 1], table[upper]
        fraction = ((target - low) / (high - low)).clamp(0, 1)
        return ((upper - 1 + fraction) / len(self.abar)).to(sigma.dtype)


def scaled_linear(beta_start: float, beta_end: float, num_times: int = 1000) -> DiscreteTable:
    """Betas whose square roots are evenly spaced (latent diffusion; PVDM: 0.0015 to 0.0195)."""
    # On the CPU also where a family is built without memory for its weights.
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_times, dtype=torch.float64, device="cpu")
    return DiscreteTable(tuple((1 - roots**2).cumprod(0).tolist()))


def cosine(num_times: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> DiscreteTable:
    """Nichol & Dhariwal's cosine schedule with its usual cap on beta."""

    def signal(t: float) -> float:
        return math.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2

    abar, table = 1.0, []
    for i in range(num_times):
        beta = min(1 - signal((i + 1) / num_times) / signal(i / num_times), max_beta)
        abar *= 1 - beta
        table.append(abar)
    return DiscreteTable(tuple(table))
