"""Sampling clip by clip: each clip given the one before, a video of any number of clips.

The first clip comes from the null condition, zeros. A finished clip is decoded, and its frames are encoded
again to condition the next one: so the condition lies where training conditions lie. Clips join end to
end, without overlap or blending.

Shapes: B videos, C channels, N cells of all planes, T H W frames and pixels, M condition tokens, E width.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.diffusion.guidance import guide
from hpdm_core.errors import ConfigError
from hpdm_core.families.conditioned import asks
from hpdm_core.families.pvdm.config import PvdmSample
from hpdm_core.nn.chunks import in_chunks
from hpdm_core.nn.graphs import called
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Outline, Request, Solver, Stage, StageOutline, State, StepDenoiser

if TYPE_CHECKING:
    from hpdm_core.families.pvdm.family import PvdmFamily

T = TypeVar("T")
LATENT = "latent"


def clip_name(index: int) -> str:
    """The stage name of a clip."""
    return f"clip{index}"


class ClipChain:
    """One request's way from clip to clip."""

    def __init__(self, family: PvdmFamily, request: Request, options: PvdmSample) -> None:
        self.family, self.request, self.options = family, request, options
        self.num_clips = self._num_clips()
        family.check_request(request)

    def outline(self) -> Outline:
        """Cost per clip of one video."""
        frames, height, width = self.family.config.video
        stages = []
        for index in range(self.num_clips):
            steps, solver = self._entry(self.options.steps, index), self._entry(self.options.solver, index)
            calls = solver_info(solver).calls(steps)
            blocks = calls * len(self.family.denoiser.units()) * (2 if self._guided(index) else 1)
            stages.append(StageOutline(clip_name(index), frames, (height, width), solver, steps, 1, calls, blocks))
        total = self.num_clips * frames
        return Outline(total, (height, width), tuple(stages), joins=tuple(range(frames, total, frames)))

    def stages(self) -> Generator[Stage, State, Tensor]:
        """Yield each clip's stage, receive its clean latents, return the frames of all clips."""
        cells = (self.family.config.latent_channels, self.family.config.planes.num_cells)
        previous = torch.zeros(len(self.request.seeds), *cells, device=self.request.device)
        clips: list[Tensor] = []
        for index in range(self.num_clips):
            steps, name = self._entry(self.options.steps, index), self._entry(self.options.solver, index)
            offered = {"churn": self.options.churn, "eta": self.options.eta}
            solver = Solver(name, {k: v for k, v in offered.items() if k in solver_info(name).options})
            state = yield Stage(
                clip_name(index),
                {LATENT: cells},
                self._denoiser(index, previous),
                self.family.schedule.grid(steps),
                solver,
                solver_info(name).calls(steps),
            )
            clips.append(in_chunks(self.family.autoencoder.decoder, self.options.chunk, state[LATENT]))
            if index + 1 < self.num_clips:
                previous = state[LATENT] if self.options.reuse_latent else self._encoded(clips[-1])
        return torch.cat(clips, dim=2)

    def _denoiser(self, index: int, previous_BCN: Tensor) -> StepDenoiser:
        wanted, weight = self.family.wanted(self.request), self._entry(self.options.guidance, index)
        unwanted = self.family.unwanted(self.request) if self._guided(index) else None

        def denoise(state: State, sigma: float, _: int) -> State:
            predict = partial(in_chunks, partial(self._predict, sigma), self.options.chunk, state[LATENT], previous_BCN)
            clean = predict(*(wanted or ()))
            if unwanted is not None:
                clean = guide(clean, predict(*unwanted), weight)
            return {LATENT: clean.clamp(-1, 1) if self.options.clip else clean}

        return denoise

    def _predict(
        self,
        sigma: float,
        u_BCN: Tensor,
        previous_BCN: Tensor,
        tokens_BME: Tensor | None = None,
        mask_BM: Tensor | None = None,
    ) -> Tensor:
        """The clean latents of one chunk."""
        form, denoiser = self.family.form, self.family.denoiser
        noise_B = self.family.schedule.coordinate(torch.full((len(u_BCN),), sigma, device=u_BCN.device))

        def network(z: Tensor, given: Tensor, noise: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
            return denoiser(z, given, noise, None if tokens is None else Condition(tokens, mask))

        inputs = (form.network_input(u_BCN, sigma), previous_BCN, noise_B, tokens_BME, mask_BM)
        output = called(denoiser, LATENT, network, inputs, graphs=self.options.graphs)
        return form.denoised(u_BCN, output, sigma)

    def _encoded(self, video_BCTHW: Tensor) -> Tensor:
        return in_chunks(self.family.autoencoder.encoder, self.options.chunk, video_BCTHW)

    def _guided(self, index: int) -> bool:
        return asks(self.request) and self._entry(self.options.guidance, index) != 1.0

    def _num_clips(self) -> int:
        length, *size = self.family.config.video
        if self.request.size not in (None, tuple(size)):
            raise ConfigError(
                f"this model makes frames of {size[0]}x{size[1]}, not {'x'.join(map(str, self.request.size or ()))}",
                hint="leave --res away, or train a model of that size",
            )
        frames = self.request.frames or length
        if frames % length:
            raise ConfigError(
                f"this model makes videos of whole clips of {length} frames, and {frames} is no multiple of that",
                hint=f"--frames can be {length}, {2 * length}, {3 * length}, …",
            )
        if frames > length and self.family.config.training.previous_share == 0:
            raise ConfigError(
                f"this model has never been given the clip before, and makes one clip of {length} frames",
                hint="train it with model.training.previous_share above 0",
            )
        return frames // length

    @staticmethod
    def _entry(values: tuple[T, ...], index: int) -> T:
        return values[min(index, len(values) - 1)]
