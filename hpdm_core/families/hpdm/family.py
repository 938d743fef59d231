"""HPDM as a family: what it reads, what it minimises, how it samples.

Each training item is one nested patch per level of one video. Every patch is corrupted independently at
its own noise level and all are denoised jointly; the loss is the plain sum over levels (HPDM §3.1).

Shapes: L levels, B batch, C channels, T H W frames and pixels.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.config.schema import ModelSection, SampleSection
from hpdm_core.data.window import Batch
from hpdm_core.diffusion.process import Parametrisation, corrupt
from hpdm_core.diffusion.schedule import LogNormal
from hpdm_core.families.base import Growth, Losses, Phase, Role
from hpdm_core.families.conditioned import ConditionedFamily
from hpdm_core.families.hpdm.cascade import Cascade
from hpdm_core.families.hpdm.config import HpdmModel, HpdmSample
from hpdm_core.families.hpdm.denoiser import HierarchicalDenoiser
from hpdm_core.families.hpdm.grow import grow, target_settings
from hpdm_core.pyramid.extract import PatchView, level_name
from hpdm_core.rng import BatchStreams
from hpdm_core.sampling.stage import Outline, Request, Stage, State


class HpdmFamily(ConditionedFamily):
    """Hierarchical patch diffusion over `config.pyramid`."""

    name: ClassVar[str] = "hpdm"
    model_section: ClassVar[type[ModelSection]] = HpdmModel
    sample_section: ClassVar[type[SampleSection]] = HpdmSample

    def __init__(self, config: HpdmModel) -> None:
        super().__init__()
        self.config, self.pyramid = config, config.pyramid
        self.schedule = LogNormal(config.sigma_log_mean, config.sigma_log_std, config.sigma_min, config.sigma_max)
        self.levels = tuple(
            Parametrisation(
                config.prediction,
                weighting=config.loss_weighting,
                scale=config.input_scale * config.input_scale_growth**level,
                sigma_data=config.sigma_data,
            )
            for level in range(self.pyramid.num_levels)
        )
        self.denoiser = HierarchicalDenoiser(config)
        self.listen(config.condition, config.token_dim)

    def phases(self) -> tuple[Phase, ...]:
        """One: all levels jointly."""
        return (Phase("joint", (Role("denoiser", ("denoiser", *self.listeners)),)),)

    def view(self, phase: str) -> PatchView:
        """One nested patch per level."""
        return PatchView(self.pyramid)

    @classmethod
    def target_settings(
        cls, model: Mapping[str, Any], frames: int | None, size: tuple[int, int] | None
    ) -> dict[str, Any]:
        """Another `video`, and `levels_per_block` capped at its levels."""
        return target_settings(model, frames, size)

    @classmethod
    def most_stages(cls, model: ModelSection) -> int:
        """One per level."""
        assert isinstance(model, HpdmModel)
        return model.pyramid.num_levels

    def grow_from(self, tensors: Mapping[str, Tensor], base: ModelSection) -> Growth:
        """From a model of the first levels of this one."""
        assert isinstance(base, HpdmModel)
        return grow(self, tensors, base)

    def compile_units(self) -> Sequence[nn.Module]:
        """The fused blocks, and the layers before and after them."""
        return [self.denoiser.stem, *self.denoiser.blocks, self.denoiser.head]

    def level_shares(self) -> dict[str, dict[str, float]]:
        """Rows of all levels cost the same; level l is fused with l coarser ones, level 0 with none."""
        names = [level_name(level) for level in range(self.pyramid.num_levels)]
        shares = {"denoiser": dict.fromkeys(names, 1 / len(names))}
        for b, load in enumerate(self.config.levels_per_block):
            block, fused = f"denoiser.blocks.{b}", names[1:load]
            shares[f"{block}.rin"] = dict.fromkeys(names[:load], 1 / load)
            if fused:
                pairs = sum(range(load))
                shares[block] = {name: level / pairs for level, name in enumerate(fused, 1)}
                shares[f"{block}.fusion"] = dict.fromkeys(fused, 1 / len(fused))
        return shares

    def losses(self, role: str, batch: Batch, streams: BatchStreams) -> Losses:
        """Sum over levels of w(sigma_l) |F_l - F*_l|², each a mean over pixels and rows (spec §3.5)."""
        names = [level_name(level) for level in range(self.pyramid.num_levels)]
        x = torch.stack([batch.videos[name] for name in names])
        eps = torch.stack([streams.normal(f"noise/{name}", x.shape[2:]) for name in names])
        sigma = self.schedule.draw(streams.uniform("sigma", len(names))).T.contiguous()
        condition = self.batch_condition(batch, streams)
        tokens, mask = (None, None) if condition is None else condition
        inputs, targets, weights = [], [], []
        for level, form in enumerate(self.levels):
            noisy = corrupt(x[level], eps[level], sigma[level], form.scale)
            inputs.append(form.network_input(noisy, sigma[level]))
            targets.append(form.target(x[level], eps[level], sigma[level]))
            weights.append(form.weight(sigma[level]))
        z, noise, offsets = torch.stack(inputs), self.schedule.coordinate(sigma), batch.meta["offsets"]
        latents = self._first_pass(z, noise, offsets, condition, streams)
        output, _ = self.denoiser(z, noise, offsets, tokens, latents, mask_BM=mask)
        error = (output.float() - torch.stack(targets)).square().mean(dim=(2, 3, 4, 5))
        per_level = (torch.stack(weights) * error).mean(dim=1)
        factors = self.config.level_weights or (1.0,) * len(names)
        terms = {name: factors[i] * per_level[i] for i, name in enumerate(names)}
        parts = dict(zip(names, per_level.detach(), strict=True))
        return Losses(torch.stack(list(terms.values())).sum(), parts, terms)

    def outline(self, request: Request, options: SampleSection) -> Outline:
        """Tiles, steps and network calls of each level."""
        assert isinstance(options, HpdmSample)
        return Cascade(self, request, options).outline()

    def exact_prefix(self, options: SampleSection) -> bool:
        """Yes, unless tiles overlap in time."""
        assert isinstance(options, HpdmSample)
        return options.exact_prefix

    def plan(self, request: Request, options: SampleSection) -> Generator[Stage, State, Tensor]:
        """The coarse-to-fine cascade (HPDM §3.4)."""
        assert isinstance(options, HpdmSample)
        return Cascade(self, request, options).stages()

    def _first_pass(
        self, z: Tensor, noise: Tensor, offsets: Tensor, condition: Condition | None, streams: BatchStreams
    ) -> Tensor | None:
        """Latents for self-conditioning: from a pass without gradient for the chosen rows, zeros for the others."""
        if self.config.self_conditioning == 0:
            return None
        chosen = streams.uniform("self-conditioning", 1)[:, 0] < self.config.self_conditioning
        tokens, mask = (None, None) if condition is None else condition
        with torch.no_grad():
            _, latents = self.denoiser(z, noise, offsets, tokens, mask_BM=mask)
        return latents * chosen.to(latents.device)[None, :, None, None]
