"""PVDM as a family: an autoencoder, then diffusion on its latents, in three phases.

    ae       reconstruction: L1, and LPIPS where its weights are given
    ae_gan   the same against two critics; autoencoder and critics take turns
    ldm      noise prediction on the latents of the frozen autoencoder, with and without the clip before

Classes and texts condition the denoiser (see `unet.py`), with a null condition for guidance: an extension, the
paper is unconditional. The critics are trained with the model and saved with it; sampling ignores them.

Shapes: B batch, C channels, T H W frames and pixels, N cells of all planes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpdm_core.config.schema import ModelSection, SampleSection
from hpdm_core.data.window import Batch, ClipView
from hpdm_core.diffusion.process import Parametrisation, corrupt
from hpdm_core.diffusion.schedule import scaled_linear
from hpdm_core.families.base import Losses, Phase, Plateau, Role
from hpdm_core.families.conditioned import ConditionedFamily
from hpdm_core.families.pvdm.autoencoder import Autoencoder
from hpdm_core.families.pvdm.clips import ClipChain
from hpdm_core.families.pvdm.config import PhaseSection, PvdmModel, PvdmSample
from hpdm_core.families.pvdm.critics import (
    Critics,
    adversarial_loss,
    feature_loss,
    frozen,
    hinge_loss,
    pick_frames,
)
from hpdm_core.families.pvdm.perceptual import PerceptualLoss
from hpdm_core.families.pvdm.planes import PLANES
from hpdm_core.families.pvdm.unet import PlaneUNet
from hpdm_core.families.pvdm.views import CLIP, PREVIOUS, ClipPair, WholeClip
from hpdm_core.nn.chunks import in_chunks
from hpdm_core.rng import BatchStreams
from hpdm_core.sampling.stage import Outline, Request, Stage, State


class PvdmFamily(ConditionedFamily):
    """Projected latent video diffusion over clips of `config.video`."""

    name: ClassVar[str] = "pvdm"
    model_section: ClassVar[type[ModelSection]] = PvdmModel
    sample_section: ClassVar[type[SampleSection]] = PvdmSample

    def __init__(self, config: PvdmModel) -> None:
        super().__init__()
        self.config = config
        self.schedule = scaled_linear(config.beta_start, config.beta_end, config.num_times)
        self.form = Parametrisation(output="eps", weighting="output")
        self.autoencoder, self.denoiser = Autoencoder(config), PlaneUNet(config)
        self.critics = None if config.training.ae_gan is None else Critics(config.critic)
        self.perceptual = PerceptualLoss(config.training.perceptual)
        self.listen(config.condition, self.denoiser.embedding_dim)

    def phases(self) -> tuple[Phase, ...]:
        """`ae`, `ae_gan` unless it is left out, `ldm`."""
        training = self.config.training
        found = [self._phase("ae", training.ae, Role("autoencoder", ("autoencoder",), optimizer=training.ae.optimizer))]
        if training.ae_gan is not None:
            turn = partial(_has_turn, training.alternate_steps)
            roles = (
                Role("generator", ("autoencoder",), partial(turn, 0), training.ae_gan.optimizer),
                Role("critics", ("critics",), partial(turn, 1), training.critics_optimizer),
            )
            found.append(self._phase("ae_gan", training.ae_gan, *roles))
        found.append(
            self._phase(
                "ldm", training.ldm, Role("denoiser", ("denoiser", *self.listeners), optimizer=training.ldm.optimizer)
            )
        )
        return tuple(found)

    def view(self, phase: str) -> ClipView:
        """Two consecutive clips for `ldm`, one for the others and where no item sees the clip before."""
        if phase == "ldm" and self.config.training.previous_share > 0:
            return ClipPair(self.config.video, self.config.training.previous_share)
        return WholeClip(self.config.video)

    @classmethod
    def most_stages(cls, model: ModelSection) -> int | None:
        """One per clip: any number, unless the model has never been given the clip before."""
        assert isinstance(model, PvdmModel)
        return 1 if model.training.previous_share == 0 else None

    def varying(self, phase: str, micro_batch: int) -> str:
        """`ldm` encodes the clip before only for the rows that are given it, unless one call holds all rows."""
        if phase != "ldm" or self.config.training.previous_share == 0 or self._encodes_all(micro_batch):
            return ""
        return "more rows than model.training.encode_rows encode the clip before only where they are given it"

    def compile_units(self) -> Sequence[nn.Module]:
        """The blocks of the autoencoder, of its projectors and of the U-Net."""
        return [*self.autoencoder.units(), *self.denoiser.units()]

    def losses(self, role: str, batch: Batch, streams: BatchStreams) -> Losses:
        """The loss of `autoencoder`, `generator`, `critics` or `denoiser`."""
        if role == "denoiser":
            return self._denoising(batch, streams)
        frames = (streams.uniform("frame", 1)[:, 0] * self.config.video[0]).long()
        video = batch.videos[CLIP]
        return self._critics(video, frames) if role == "critics" else self._reconstruction(role, video, frames)

    def outline(self, request: Request, options: SampleSection) -> Outline:
        """Steps and network calls of each clip."""
        assert isinstance(options, PvdmSample)
        return ClipChain(self, request, options).outline()

    def plan(self, request: Request, options: SampleSection) -> Generator[Stage, State, Tensor]:
        """Clip after clip, each given the one before."""
        assert isinstance(options, PvdmSample)
        return ClipChain(self, request, options).stages()

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Latents [B, C, N] of clips."""
        return in_chunks(self.autoencoder.encoder, min(self.config.training.encode_rows, len(video)), video)

    @torch.no_grad()
    def encode_pair(self, clip: Tensor, previous: Tensor, conditional_B: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, C, N] of the clips, and of the clips before them: zeros where `conditional_B` is 0."""
        z = self.encode(clip)
        if self._encodes_all(len(clip)):
            return z, self.encode(previous) * conditional_B.view(-1, 1, 1)
        rows, given = conditional_B.nonzero()[:, 0], torch.zeros_like(z)
        if len(rows):
            given[rows] = self.encode(previous[rows])
        return z, given

    def _encodes_all(self, batch: int) -> bool:
        """Whether every row's clip before is encoded, wanted or not: as cheap in one call, and the same for all ranks.

        Its shapes never change, and nothing waits for the device to say which rows are wanted.
        """
        return self.sharded or self.config.training.encode_rows >= batch

    def _phase(self, name: str, section: PhaseSection, *roles: Role) -> Phase:
        """A phase with its section's steps, batch size and rule to stop."""
        stop = section.stop
        rule = None if stop is None else Plateau(self._reconstruct, stop.every_steps, stop.patience, stop.clips)
        return Phase(name, roles, section.steps, section.batch_size, section.micro_batch, rule)

    def _reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The clips and what the autoencoder makes of them."""
        return batch.videos[CLIP], self.autoencoder(batch.videos[CLIP])

    def _denoising(self, batch: Batch, streams: BatchStreams) -> Losses:
        """The mean squared error of the predicted noise; one noise level and one noise for all planes."""
        if PREVIOUS in batch.videos:
            z, previous = self.encode_pair(batch.videos[CLIP], batch.videos[PREVIOUS], batch.meta["conditional"])
        else:
            z = self.encode(batch.videos[CLIP])
            previous = torch.zeros_like(z)
        eps = streams.normal("noise", z.shape[1:])
        sigma = self.schedule.draw(streams.uniform("sigma", 1))[:, 0]
        output = self.denoiser(
            self.form.network_input(corrupt(z, eps, sigma, self.form.scale), sigma),
            previous,
            self.schedule.coordinate(sigma),
            self.batch_condition(batch, streams),
        )
        errors = self.config.planes.split((output - self.form.target(z, eps, sigma)).square())
        parts = {name: error.mean() for name, error in zip(PLANES, errors, strict=True)}
        share = {name: error[0, 0].numel() / z.shape[2] for name, error in zip(PLANES, errors, strict=True)}
        terms = {name: share[name] * parts[name] for name in PLANES}
        return _summed(terms, parts)

    def _reconstruction(self, role: str, video: Tensor, frames: Tensor) -> Losses:
        """L1 and LPIPS; for the `generator` also what the critics say."""
        weights, output = self.config.training, self.autoencoder(video)
        parts = {"l1": (output - video).abs().mean()}
        terms = {"l1": weights.pixel_weight * parts["l1"]}
        if weights.perceptual_weight > 0:
            distance = self.perceptual(pick_frames(output, frames), pick_frames(video, frames))
            if distance is not None:
                parts["lpips"], terms["lpips"] = distance, weights.perceptual_weight * distance
        if role == "generator":
            assert self.critics is not None
            with torch.no_grad():
                real = self.critics(video, frames)
            with frozen(self.critics):
                fake = self.critics(output, frames)
            parts |= {"adversarial": adversarial_loss(fake), "features": feature_loss(real, fake)}
            terms["adversarial"] = weights.adversarial_weight * parts["adversarial"]
            terms["features"] = weights.feature_weight * parts["features"]
        # Clip by clip: the mean is that of any micro-batches and ranks. Pixels span 2, and so the peak signal is 2.
        error_B = (output.detach() - video).square().mean(dim=(1, 2, 3, 4))
        parts["psnr"] = (-10 * (error_B / 4).clamp_min(1e-10).log10()).mean()
        return _summed(terms, parts)

    def _critics(self, video: Tensor, frames: Tensor) -> Losses:
        """The hinge loss of both critics against reconstructions."""
        assert self.critics is not None
        with torch.no_grad():
            output = self.autoencoder(video)
        loss = hinge_loss(self.critics(video, frames), self.critics(output, frames))
        return _summed({"hinge": loss}, {"hinge": loss})


def _summed(terms: dict[str, Tensor], parts: dict[str, Tensor]) -> Losses:
    return Losses(torch.stack(list(terms.values())).sum(), {k: v.detach() for k, v in parts.items()}, terms)


def _has_turn(every: int, which: int, step: int) -> bool:
    """Whether role `which` of two is active at `step` when they take turns of `every` steps."""
    return step // every % 2 == which
