"""The `model` and `sample` sections of an HPDM preset, with every ablation as a switch."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpdm_core.config.schema import (
    ConditionSection,
    Count,
    Extent,
    Fraction,
    ModelSection,
    Positive,
    SampleSection,
)
from hpdm_core.errors import ConfigError
from hpdm_core.pyramid.geometry import Pyramid

Overlap = Literal["none", "spatial", "time", "full"]


class HpdmModel(ModelSection):
    """The network and its diffusion. Extents are (frames, height, width).

    levels_per_block: how many levels block b processes (HPDM §3.4); fine levels skip early blocks.
    fusion: `deep` is DCF; `shallow` concatenates the aligned RGB of the level before to the input;
    `none` joins nothing. context_gradient: whether fine losses reach coarse features through the context.
    fusion_init: `default` like one linear layer; `identity` passes own features on and starts the rest at zero;
    `residual` passes them on and starts the rest as `default` does, because LAMB moves a weight in proportion to
    its norm and hardly leaves zero.
    head_dim: width of an attention head; latent_head_dim: among latents, null for the same.
    position_init: what the learned embedding of a token's place begins as: small random numbers, or sinusoids of its
    place in the patch, of the size of the tokens.
    input_scale, input_scale_growth: sigma_in of level 0 and its factor per level (spec §2.2).
    prediction: what the network's output means. `edm_v` is v with unscaled coefficients (spec §2.2), whose error the
    clean estimate of a level of input scale s > 2 multiplies by up to s / (2 sqrt(s - 1)); `v` has the coefficients
    of the level's own signal and noise, and multiplies it by at most 1. They are one at a level whose s is 1.
    loss_weighting: `edm` weighs the error of the clean estimate by 1 + 1 / sigma² (spec §2.2), which counts small noise
    input_scale² times more than large; `output` counts the output's error alike at all noise levels and levels of the
    pyramid, as plain v-prediction does.
    self_conditioning: probability of latent self-conditioning in training; 0 leaves it out.
    """

    video: Extent
    patch: Extent
    token: Extent
    token_dim: Count = 1024
    latent_dim: Count = 512
    num_latents: Count = 768
    levels_per_block: tuple[Count, ...]
    latent_layers: Count = 4
    head_dim: Count = 64
    latent_head_dim: Count | None = None
    mlp_ratio: Positive = 4.0
    token_mlp_ratio: Positive = 4.0
    fusion: Literal["deep", "shallow", "none"] = "deep"
    fusion_init: Literal["default", "identity", "residual"] = "default"
    context_gradient: bool = True
    coordinates: bool = True
    position_init: Literal["random", "sinusoids"] = "random"
    self_conditioning: Fraction = 0.0
    condition: ConditionSection = ConditionSection()
    input_scale: Positive = 4.0
    input_scale_growth: Positive = 2.0
    prediction: Literal["edm_v", "v"] = "edm_v"
    loss_weighting: Literal["edm", "output"] = "edm"
    level_weights: tuple[float, ...] | None = None
    sigma_data: Positive = 1.0
    sigma_log_mean: float = -1.2
    sigma_log_std: Positive = 1.2
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    @property
    def pyramid(self) -> Pyramid:
        """The geometry; ConfigError where the patch does not grow into the video."""
        return Pyramid(self.video, self.patch)

    @property
    def first_blocks(self) -> tuple[int, ...]:
        """Per level, the index of the first block that processes it."""
        return tuple(
            next(b for b, n in enumerate(self.levels_per_block) if n > level)
            for level in range(self.pyramid.num_levels)
        )

    @model_validator(mode="after")
    def _consistent(self) -> HpdmModel:
        if min(self.token) < 1:
            raise ValueError(f"token {list(self.token)} must be at least 1 along every axis")
        try:
            levels = self.pyramid.num_levels
        except ConfigError as error:
            raise ValueError(f"{error} ({error.hint})") from error
        load = self.levels_per_block
        if not load or any(b < a for a, b in itertools.pairwise(load)) or load[-1] != levels:
            raise ValueError(f"levels_per_block {list(load)} must not decrease and must end with {levels} (the levels)")
        if any(part % size for part, size in zip(self.patch, self.token, strict=True)):
            raise ValueError(f"a patch {list(self.patch)} does not divide into tokens of {list(self.token)}")
        if self.level_weights is not None and len(self.level_weights) != levels:
            raise ValueError(f"level_weights has {len(self.level_weights)} entries for {levels} levels")
        heads = [(self.token_dim, self.head_dim), (self.latent_dim, self.head_dim)]
        for width, head in [*heads, (self.latent_dim, self.latent_head_dim or self.head_dim)]:
            if width % min(head, width):
                raise ValueError(f"a width of {width} does not divide into heads of {head} (head_dim)")
        if self.prediction == "v" and self.sigma_data != 1:
            raise ValueError(f"prediction v needs a sigma_data of 1, not {self.sigma_data}: change input_scale instead")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class HpdmSample(SampleSection):
    """The cascade of HPDM §3.4. Lists have one entry per level; a shorter list repeats its last entry.

    steps: the paper's 128 at level 0, halved per level. solver: Heun with churn at level 0, Euler later.
    overlap: `spatial` is what the paper reports metrics with, `full` what it shows.
    phases: with `together` every step averages overlapping windows; with `alternate` those that lie side by side and
    those in between take turns, step by step: a third of the calls, and what is a seam in one step is none in the next.
    guidance: 1 is the plain conditional model. guidance_low: in every second step of a stage guide by this
    weight instead (oscillating guidance, Imagen Video). dynamic_threshold: clip clean estimates at this quantile of
    their size and divide them by it, where it is beyond 1 (Imagen).
    sigma_min: the lowest noise level at which a level calls the network; null takes the model's. With few steps take a
    higher one: the second of two steps does nothing at 0.002.
    context_sigma: noise level of coarse levels as context; null takes the lowest that training saw often enough, two
    standard deviations of the logarithm below its mean. With less, fine levels meet a cleaner context than they
    were trained on.
    cache: keep coarse features per tile; off recomputes the exact nested chain for every tile and step.
    chunk: tiles per network call, one number or one per level (padded, so that results do not depend on how many
    videos are made at once); null takes the tiles of one window in time, at most 64, on a CPU as many as its caches
    hold. clip: keep clean estimates within [-1, 1].
    level: stop there; null goes on to the size that was asked for, or the finest.
    """

    steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 64, 32, 16)
    solver: Annotated[tuple[str, ...], Field(min_length=1)] = ("heun", "euler")
    churn: Annotated[float, Field(ge=0.0)] = 40.0
    eta: Fraction = 0.0
    overlap: Overlap = "spatial"
    phases: Literal["together", "alternate"] = "together"
    window: Literal["uniform", "smooth"] = "uniform"
    guidance: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0,)
    guidance_low: float | None = None
    dynamic_threshold: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    sigma_min: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    context_sigma: Positive | None = None
    cache: bool = True
    chunk: Count | Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    clip: bool = False
    level: Annotated[int, Field(ge=0)] | None = None

    @property
    def overlap_axes(self) -> tuple[bool, bool, bool]:
        """Per axis (t, h, w)."""
        return (
            self.overlap in ("time", "full"),
            self.overlap in ("spatial", "full"),
            self.overlap in ("spatial", "full"),
        )

    @property
    def exact_prefix(self) -> bool:
        """Whether the first frames of a video do not depend on the later ones."""
        return not self.overlap_axes[0] and self.dynamic_threshold is None
