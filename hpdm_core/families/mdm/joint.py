"""Sampling (MDM spec §5): all levels start from independent noise and are denoised together, step by step.

One stage holds every level as a component; they share sigma, and each one's shift is in its input scale, so
the registered solvers apply as they are.

Shapes: B videos, C channels, T H W frames and pixels.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.diffusion.guidance import guide
from hpdm_core.errors import ConfigError
from hpdm_core.families.conditioned import asks
from hpdm_core.families.mdm.config import MdmSample
from hpdm_core.nn.chunks import in_chunks
from hpdm_core.nn.graphs import called
from hpdm_core.pyramid.extract import level_name
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Outline, Request, Solver, Stage, StageOutline, State

if TYPE_CHECKING:
    from hpdm_core.families.mdm.family import MdmFamily

STAGE = "joint"


class JointSampling:
    """One request: which level is returned, which ones take part, and how they are denoised."""

    def __init__(self, family: MdmFamily, request: Request, options: MdmSample) -> None:
        self.family, self.request, self.options = family, request, options
        self.extents = [level.extent for level in family.config.levels]
        self.trained = family.denoiser.trained_levels()
        self.level = self._wanted_level()
        self.num_levels = self.trained if options.joint else self.level + 1
        self._scales = {level_name(k): form.scale for k, form in enumerate(family.levels)}
        family.check_request(request)
        self.guided = asks(request) and options.guidance[0] != 1.0

    def outline(self) -> Outline:
        """The cost for one video."""
        frames, height, width = self.extents[self.level]
        steps, name = self.options.steps[0], self.options.solver[0]
        calls = solver_info(name).calls(steps)
        depth = sum(1 for _ in self.family.denoiser.blocks(self.num_levels))
        evaluations = calls * depth * (2 if self.guided else 1)
        stage = StageOutline(STAGE, frames, (height, width), name, steps, 1, calls, evaluations)
        return Outline(frames, (height, width), (stage,))

    def stages(self) -> Generator[Stage, State, Tensor]:
        """Yield the one stage and return the wanted level of its clean state."""
        steps, name = self.options.steps[0], self.options.solver[0]
        offered = {"churn": self.options.churn, "eta": self.options.eta}
        solver = Solver(name, {k: v for k, v in offered.items() if k in solver_info(name).options})
        shapes = {level_name(k): (3, *extent) for k, extent in enumerate(self.extents[: self.num_levels])}
        grid, calls = self.family.schedule.grid(steps), solver_info(name).calls(steps)
        wanted = self.family.wanted(self.request)
        unwanted = self.family.unwanted(self.request) if self.guided else None

        def denoise(state: State, sigma: float, _: int) -> State:
            clean = self._clean(state, sigma, wanted)
            if self.guided:
                free = self._clean(state, sigma, unwanted)
                clean = {k: guide(clean[k], free[k], self.options.guidance[0]) for k in clean}
            return {key: self._held(x) / self._scales[key] for key, x in clean.items()}

        state = yield Stage(STAGE, shapes, denoise, grid, solver, calls)
        returned = level_name(self.level)
        return state[returned] * self._scales[returned]

    def _clean(self, state: State, sigma: float, condition: Condition | None) -> State:
        """The clean estimates of one condition, in units of x."""
        names = list(state)
        forms = self.family.levels[: len(names)]
        inputs = [form.network_input(state[name], sigma) for name, form in zip(names, forms, strict=True)]

        def network(*given: Tensor | None) -> list[Tensor]:
            *z, noise, tokens, mask = given
            assert noise is not None
            told = None if tokens is None else Condition(tokens, mask)
            return self.family.denoiser([x for x in z if x is not None], noise, told)

        def call(*given: Tensor | None) -> Tensor:
            outputs = called(self.family.denoiser, STAGE, network, given, graphs=self.options.graphs)
            return torch.cat([output.flatten(1) for output in outputs], dim=1)

        noise_B = self.family.schedule.coordinate(torch.full((len(inputs[0]),), sigma, device=inputs[0].device))
        flat = in_chunks(call, self.options.chunk, *inputs, noise_B, *(condition or (None, None)))
        outputs = flat.split([x[0].numel() for x in inputs], dim=1)
        return {
            name: form.denoised(state[name], output.reshape(state[name].shape), sigma)
            for name, form, output in zip(names, forms, outputs, strict=True)
        }

    def _held(self, x_BCTHW: Tensor) -> Tensor:
        """The estimate within [-1, 1], by the threshold asked for (`dynamic`: Imagen, §2.3)."""
        if self.options.threshold == "none":
            return x_BCTHW
        if self.options.threshold == "clip":
            return x_BCTHW.clamp(-1, 1)
        reach = torch.quantile(x_BCTHW.flatten(1).abs().float(), self.options.percentile, dim=1).clamp_min(1.0)
        reach = reach.view(-1, 1, 1, 1, 1)
        return x_BCTHW.clamp(-reach, reach) / reach

    def _wanted_level(self) -> int:
        """The level to return: the option's, or the largest trained one that fits the request."""
        known = ", ".join(f"{t}x{h}x{w}" for t, h, w in self.extents[: self.trained])
        if self.options.level is not None:
            if self.options.level >= self.trained:
                raise ConfigError(
                    f"sample.level {self.options.level} is not one of the {self.trained} trained levels of this model",
                    hint=f"its levels from 0 on are {known} (frames x height x width)",
                )
            return self.options.level
        frames, size = self.request.frames, self.request.size
        for level in reversed(range(self.trained)):
            t, *side = self.extents[level]
            if frames in (None, t) and size in (None, tuple(side)):
                return level
        wanted_size = None if size is None else f"{size[0]}x{size[1]}"
        wanted_frames = None if frames is None else f"{frames} frames"
        asked = " of ".join(part for part in (wanted_frames, wanted_size) if part)
        raise ConfigError(f"this model does not make {asked}", hint=f"it makes {known} (frames x height x width)")
