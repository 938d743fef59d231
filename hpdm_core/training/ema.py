"""Moving averages of the weights. They cost no communication and resume exactly.

`power`: EDM2's power-function profile (Karras et al. 2024, §3.1): the average at time t weights the weights
of time s by s^gamma, so a track of relative width sigma_rel always spans the same fraction of training.
`half_life`: an exponential average with EDM's start-up ramp. Time is counted in videos.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from hpdm_core.config.schema import EmaSection

Decay = Callable[[int, int], float]
"""(videos seen, videos since the last update) to the share of the old average that stays."""

RAMP = 0.05
"""A half-life never exceeds this share of the videos seen so far (EDM's ramp-up ratio)."""


def power_exponent(width: float) -> float:
    """gamma of the power-function profile whose relative standard deviation is `width`.

    Solves (gamma + 1) = width^2 (gamma + 2)^2 (gamma + 3), EDM2 eq. 126; widths lie in (0, 0.289).
    """
    if not 0.0 < width < 12.0**-0.5:
        raise ValueError(f"an EMA width must lie between 0 and {12.0**-0.5:.3f}, got {width}")
    precision = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision]).real.max())


def power_decay(width: float) -> Decay:
    """(1 - delta/t)^(gamma + 1): the first update takes the weights as they are."""
    power = power_exponent(width) + 1.0
    return lambda videos, delta: (1.0 - delta / videos) ** power


def half_life_decay(half_life: float) -> Decay:
    """0.5^(delta / half-life), the half-life held to RAMP x videos seen before this update."""
    return lambda videos, delta: 0.5 ** (delta / max(min(half_life, RAMP * (videos - delta)), 1e-8))


def tracks_of(section: EmaSection) -> dict[str, Decay]:
    """The tracks that a config asks for, by name; the first is the one that gets sampled."""
    if section.kind == "power":
        return {f"power_{width:.3f}": power_decay(width) for width in section.widths}
    if section.kind == "half_life":
        return {"half_life": half_life_decay(section.half_life_videos)}
    return {}


class Ema:
    """fp32 shadows of named parameters. A sharded parameter has a shadow sharded alike."""

    def __init__(self, section: EmaSection, params: Mapping[str, nn.Parameter]) -> None:
        self._params = dict(params)
        self._decays = tracks_of(section)
        self._every = section.every_steps
        self.videos = 0
        self.shadows: dict[str, dict[str, Tensor]] = {
            track: {name: p.detach().clone().float() for name, p in params.items()} for track in self._decays
        }

    @property
    def first(self) -> str:
        """Name of the track that sampling uses; empty if there is none."""
        return next(iter(self._decays), "")

    @torch.no_grad()
    def update(self, step: int, videos: int) -> None:
        """Take in the weights after step `step` (from 1) of the phase, at `videos` videos of the phase."""
        if step % self._every or not self._decays:
            return
        weights = [p.detach() for p in self._params.values()]
        for track, decay in self._decays.items():
            share = 1.0 - decay(videos, videos - self.videos)
            torch._foreach_lerp_(list(self.shadows[track].values()), weights, share)
        self.videos = videos

    def tensors(self) -> dict[str, Tensor]:
        """The shadows by `track/parameter`; reading a checkpoint writes into these."""
        return {f"{t}/{name}": s for t, shadow in self.shadows.items() for name, s in shadow.items()}

    def weights(self) -> Mapping[str, Tensor]:
        """What sampling uses, by parameter name: the first track's shadows, else the raw weights."""
        return self.shadows[self.first] if self.first else self._params

    def by_parameter(self) -> dict[int, Tensor]:
        """`weights()` by the `id` of the parameter that each belongs to."""
        return {id(self._params[name]): tensor for name, tensor in self.weights().items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold `weights()`; afterwards their own values again, bit for bit."""
        params = [p.detach() for p in self._params.values()]
        own = [p.clone() for p in params]
        try:
            _copy(params, self.weights().values())
            yield
        finally:
            _copy(params, own)


@torch.no_grad()
def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy tensor by tensor: the fused copy does not know sharded tensors."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
