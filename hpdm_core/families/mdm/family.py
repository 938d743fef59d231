"""Matryoshka diffusion as a family: what it reads, what it minimises, how it samples.

A clip at all its resolutions is corrupted at one noise level, with independent noise per resolution, and one
nested network denoises them jointly. Higher resolutions see a noisier schedule: SNR_r = SNR / s_r^p, which in
the scaled process u = x / s + sigma * eps is the input scale s_r^(p / 2) (MDM spec §1).

Shapes: B batch, C channels, T H W frames and pixels.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpdm_core.config.schema import ModelSection, SampleSection
from hpdm_core.data.window import Batch
from hpdm_core.diffusion.process import Parametrisation, corrupt
from hpdm_core.diffusion.schedule import cosine
from hpdm_core.errors import ConfigError, IncompatibleCheckpoint
from hpdm_core.families.base import Growth, Losses, Part, Phase, Role
from hpdm_core.families.conditioned import ConditionedFamily
from hpdm_core.families.mdm.config import MdmModel, MdmSample
from hpdm_core.families.mdm.joint import JointSampling
from hpdm_core.families.mdm.nested import NestedUNet
from hpdm_core.families.mdm.view import NestView, depth_order
from hpdm_core.pyramid.extract import level_name
from hpdm_core.rng import BatchStreams
from hpdm_core.sampling.stage import Outline, Request, Stage, State


class MdmFamily(ConditionedFamily):
    """A nest of resolutions, innermost first in `config.levels`."""

    name: ClassVar[str] = "mdm"
    model_section: ClassVar[type[ModelSection]] = MdmModel
    sample_section: ClassVar[type[SampleSection]] = MdmSample

    def __init__(self, config: MdmModel) -> None:
        super().__init__()
        self.config = config
        self.schedule = cosine(config.num_times)
        weighting = "eps" if config.loss_space == "eps" else "output"
        self.levels = tuple(
            Parametrisation("v", weighting, scale=side ** (config.shift_power / 2)) for side in config.scales
        )
        self.denoiser = NestedUNet(config, conditional=config.condition.kind != "none")
        self.listen(config.condition, config.condition_dim)

    def phases(self) -> tuple[Phase, ...]:
        """The inner levels first, then one more in each phase; what is trained stays trained (MDM §3.3)."""
        shared = ("denoiser.condition", *self.listeners) if self.listeners else ()
        found = []
        for phase in self.config.phase_list():
            modules = (*shared, *(f"denoiser.levels.{k}" for k in range(phase.levels)))
            found.append(
                Phase(phase.name, (Role(phase.name, modules),), phase.steps, phase.batch_size, phase.micro_batch)
            )
        return tuple(found)

    def view(self, phase: str) -> NestView:
        """Whole frames at the sizes of the phase's levels."""
        extents = tuple(level.extent for level in self.config.levels)
        return NestView(extents[: self._num_levels(phase)], max(frames for frames, _, _ in extents))

    def varying(self, phase: str, micro_batch: int) -> str:
        """Mixed-resolution batches: how many rows reach a level, and which, follows from their positions."""
        mixed = min(self.config.row_shares(self._num_levels(phase))) < 1
        return "model.row_mix sends other rows through each level at every step" if mixed else ""

    def compile_units(self) -> Sequence[nn.Module]:
        """The stages of every U-Net."""
        return list(self.denoiser.blocks())

    def level_shares(self) -> dict[str, dict[str, float]]:
        """Each level has a network of its own."""
        return {f"denoiser.levels.{k}": {level_name(k): 1.0} for k in range(len(self.config.levels))}

    def losses(self, role: str, batch: Batch, streams: BatchStreams) -> Losses:
        """Sum over levels of the mean squared error of the noise that v implies (or of v itself; spec §1.5).

        In mixed-resolution batches a level's error is summed over the rows that reach it and divided by how many do on
        average, so that the expectation is that of full batches.
        """
        num_levels, rows = self._num_levels(role), len(batch.positions)
        shares = self.config.row_shares(num_levels)
        order, counts = depth_order(batch.positions, shares)
        batch = _reordered(batch, order, counts)
        streams = streams.rows(order)
        sigma_B = self.schedule.draw(streams.uniform("sigma", 1)[:, 0])
        inputs, targets = [], []
        for k, form in enumerate(self.levels[:num_levels]):
            x = batch.videos[level_name(k)]
            own = streams.rows(range(len(x)))
            eps, sigma = own.normal(f"noise/{level_name(k)}", x.shape[1:]), sigma_B[: len(x)]
            inputs.append(form.network_input(corrupt(x, eps, sigma, form.scale), sigma))
            targets.append(form.target(x, eps, sigma))
        condition = self.batch_condition(batch, streams)
        outputs = self.denoiser(inputs, self.schedule.coordinate(sigma_B), condition, counts)
        parts, terms = {}, {}
        for k, form in enumerate(self.levels[:num_levels]):
            error = (outputs[k] - targets[k]).square().mean(dim=(1, 2, 3, 4)) * form.weight(sigma_B[: len(targets[k])])
            loss = error[: counts[k]].sum() / (shares[k] * rows)
            parts[level_name(k)] = loss.detach()
            terms[level_name(k)] = self.config.weights[k] * loss
        return Losses(torch.stack(list(terms.values())).sum(), parts, terms)

    def outline(self, request: Request, options: SampleSection) -> Outline:
        """Steps and network calls of the one stage."""
        assert isinstance(options, MdmSample)
        return JointSampling(self, request, options).outline()

    def plan(self, request: Request, options: SampleSection) -> Generator[Stage, State, Tensor]:
        """All levels at once (MDM spec §5)."""
        assert isinstance(options, MdmSample)
        return JointSampling(self, request, options).stages()

    def grow_from(self, tensors: Mapping[str, Tensor], base: ModelSection) -> Growth:
        """From a nest of the inner levels of this one (MDM §3.3); a new level changes nothing that these predict."""
        assert isinstance(base, MdmModel)
        count, inner = len(base.levels), self.config.levels[: len(base.levels)]
        if count >= len(self.config.levels):
            raise ConfigError(
                f"the base has {count} levels, and this preset {len(self.config.levels)}: nothing would be added",
                hint="take a preset with more levels around the base's",
            )
        # Whether a level's input is normalised has no weights, and changes when a level comes around it (spec §2.1).
        same = [a == b.model_copy(update={"normalize": a.normalize}) for a, b in zip(base.levels, inner, strict=True)]
        apart = None if all(same) else same.index(False)
        if apart is not None or base.num_times != self.config.num_times:
            what = "num_times" if apart is None else f"level {apart}"
            raise IncompatibleCheckpoint(
                f"the base's {what} is not that of this preset",
                hint="the base's levels must be this preset's inner ones",
            )
        self.load_inner(tensors)
        outer = list(self.denoiser.levels)[count:]
        new = {f"level {k}": sum(p.numel() for p in part.parameters()) for k, part in enumerate(outer, count)}
        parts = [
            Part(f"level {k}", "reused" if k < count else "new", "x".join(map(str, level.extent)))
            for k, level in enumerate(self.config.levels)
        ]
        before, after = (sum(1 for _ in self.denoiser.blocks(n)) for n in (count, len(self.config.levels)))
        reused = sum(p.numel() for p in self.parameters()) - sum(new.values())
        return Growth(tuple(parts), reused, new, {}, (before, after))

    def load_inner(self, tensors: Mapping[str, Tensor]) -> int:
        """Take over the weights of a smaller nest, whose levels are this one's inner levels; returns how many.

        tensors: a whole state dict of the smaller nest. Raises IncompatibleCheckpoint, leaving the weights as they
        were, unless it has exactly the tensors of the inner levels and of the condition.
        """
        prefix = "denoiser.levels."
        numbers = {int(name.removeprefix(prefix).partition(".")[0]) for name in tensors if name.startswith(prefix)}
        own = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(prefix) or int(name.removeprefix(prefix).partition(".")[0]) in numbers
        }
        wrong = sorted(own.keys() ^ tensors.keys())
        wrong += sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
        if wrong or not numbers:
            raise IncompatibleCheckpoint(
                f"these weights are not the inner levels of this nest: {len(wrong)} tensors differ, "
                f"the first are {', '.join(wrong[:3])}",
                hint="the inner levels, condition_dim, embedding_dim and condition of the two models must be equal",
            )
        self.load_state_dict(dict(tensors), strict=False)
        return len(numbers)

    def _num_levels(self, phase: str) -> int:
        return next(p.levels for p in self.config.phase_list() if p.name == phase)


def _reordered(batch: Batch, order: list[int], counts: list[int]) -> Batch:
    """The batch in another order of rows, each level cut to the rows that reach it; one row stands in for none."""
    if all(count == len(order) for count in counts):
        return batch
    index = torch.tensor(order, device=batch.labels.device)
    return Batch(
        videos={level_name(k): batch.videos[level_name(k)][index[: max(n, 1)]] for k, n in enumerate(counts)},
        meta={},
        labels=batch.labels[index],
        captions=[batch.captions[row] for row in order],
        positions=[batch.positions[row] for row in order],
        text={name: tensor[index] for name, tensor in batch.text.items()},
    )
