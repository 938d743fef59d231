"""The `model` and `sample` sections of a PVDM preset."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hpdm_core.config.schema import (
    ConditionSection,
    Count,
    Extent,
    Fraction,
    ModelSection,
    OptimizerSection,
    Positive,
    SampleSection,
    Section,
)
from hpdm_core.families.pvdm.planes import Planes

Weight = Annotated[float, Field(ge=0.0)]


class AutoencoderSection(Section):
    """Encoder and decoder of `depth` blocks each, `width` wide, and the three projectors.

    head_dim must be a multiple of 4 (rotary positions on two axes).
    """

    width: Count = 384
    depth: Count = 8
    heads: Count = 8
    head_dim: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    mlp_ratio: Count = 4
    projector_depth: Count = 4
    projector_heads: Count = 4
    projector_head_dim: Count = 48
    projector_mlp: Count = 512


class DenoiserSection(Section):
    """The U-Net on the planes. `attention`: down-factors at which each plane attends to itself."""

    width: Count = 256
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 4)
    blocks: Count = 2
    attention: tuple[Count, ...] = (1, 2, 4)
    heads: Count = 8


class CriticSection(Section):
    """The adversarial phase's two patch critics: `width` channels in front, `layers` of stride 2."""

    width: Count = 64
    layers: Count = 3


class PerceptualSection(Section):
    """Files of the LPIPS network: torchvision's VGG16 and LPIPS' linear heads, both safetensors.

    Without them reconstruction trains on L1 alone.
    """

    vgg: str | None = None
    heads: str | None = None

    @model_validator(mode="after")
    def _both(self) -> PerceptualSection:
        if (self.vgg is None) != (self.heads is None):
            raise ValueError("give both vgg and heads, or neither")
        return self


class StopSection(Section):
    """When a phase of the autoencoder ends before its steps: at the best Fréchet distance of reconstructions.

    Every `every_steps` steps `clips` training clips are compared with their reconstructions, over the features of a
    random network; after `patience` evaluations without a new best the phase ends, with the weights of the best.
    """

    every_steps: Count
    patience: Count = 1
    clips: Count = 256


class PhaseSection(Section):
    """One phase of training; null takes the value of the `train` section. stop: null trains all steps."""

    steps: Count | None = None
    batch_size: Count | None = None
    micro_batch: Count | None = None
    optimizer: OptimizerSection | None = None
    stop: StopSection | None = None


class TrainingSection(Section):
    """How the three phases train: `ae`, then `ae_gan`, then `ldm` with the autoencoder frozen.

    ae_gan: null leaves the adversarial phase and its critics out; its optimizer is the autoencoder's.
    alternate_steps: optimiser steps of the autoencoder, then as many of the critics, in turn.
    The four weights are the reference's. perceptual: the files of LPIPS.
    previous_share: share of items that see the clip before theirs (UCF-101 0.3, SkyTimelapse 0.2). 0 trains on single
        clips, and samples one.
    encode_rows: clips that the frozen encoder takes at once in `ldm`; more is faster and takes more memory. With a
        whole micro-batch and more the steps can run as a CUDA graph.
    """

    ae: PhaseSection = PhaseSection()
    ae_gan: PhaseSection | None = PhaseSection()
    ldm: PhaseSection = PhaseSection()
    critics_optimizer: OptimizerSection | None = None
    alternate_steps: Count = 1
    pixel_weight: Weight = 4.0
    perceptual_weight: Weight = 4.0
    adversarial_weight: Weight = 1.0
    feature_weight: Weight = 4.0
    perceptual: PerceptualSection = PerceptualSection()
    previous_share: Fraction = 0.3
    encode_rows: Count = 8


class PvdmModel(ModelSection):
    """The autoencoder, the diffusion on its latents, and how both are trained.

    video: frames, height, width of one clip. patch: pixels per side of a latent cell (frames are not merged).
    beta_start, beta_end, num_times: the noise table, whose square roots of beta are evenly spaced.
    """

    video: Extent
    patch: Count = 8
    latent_channels: Count = 4
    autoencoder: AutoencoderSection = AutoencoderSection()
    denoiser: DenoiserSection = DenoiserSection()
    critic: CriticSection = CriticSection()
    condition: ConditionSection = ConditionSection()
    beta_start: Positive = 0.0015
    beta_end: Positive = 0.0195
    num_times: Count = 1000
    training: TrainingSection = TrainingSection()

    @property
    def planes(self) -> Planes:
        """The geometry of the latents."""
        frames, height, width = self.video
        return Planes((frames, height // self.patch, width // self.patch))

    @model_validator(mode="after")
    def _consistent(self) -> PvdmModel:
        if self.training.ldm.stop is not None:
            raise ValueError("training.ldm.stop: the latent phase reconstructs nothing; stop ae or ae_gan")
        _, height, width = self.video
        if height % self.patch or width % self.patch:
            raise ValueError(f"frames of {height}x{width} do not divide into patches of {self.patch}")
        factor = 2 ** (len(self.denoiser.multipliers) - 1)
        if any(side % factor for side in self.planes.grid):
            raise ValueError(
                f"a latent grid of {list(self.planes.grid)} cannot be halved {len(self.denoiser.multipliers) - 1} "
                f"times: all its sides must be multiples of {factor}"
            )
        for multiplier in self.denoiser.multipliers:
            if self.denoiser.width * multiplier % self.denoiser.heads:
                raise ValueError(
                    f"a width of {self.denoiser.width * multiplier} does not divide into {self.denoiser.heads} heads"
                )
        return self


class PvdmSample(SampleSection):
    """Sampling clip by clip. Lists have one entry per clip; a shorter list repeats its last entry.

    steps: the paper's "400/20" is [400, 20]. eta: 1 is ancestral sampling, the reference's choice.
    clip: keep clean latents within [-1, 1], where the tanh puts them. guidance: 1 is the plain conditional
    model. reuse_latent: condition on the clip before as it was sampled, not as its decoded frames are
    encoded. chunk: videos per network call (padded, so that results do not depend on how many are made at
    once); to make many videos on a GPU, raise it together with the number made at once.
    """

    steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (400,)
    solver: Annotated[tuple[str, ...], Field(min_length=1)] = ("ddim",)
    eta: Fraction = 1.0
    churn: Weight = 0.0
    guidance: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0,)
    clip: bool = True
    reuse_latent: bool = False
    chunk: Count = 1
