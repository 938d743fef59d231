"""The typed tree behind every preset. Unknown keys, wrong types and impossible values are errors.

`model` and `sample` belong to the family named by `family`: their classes come from the family
registry, so that this file knows no family. Everything else is common to all.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializeAsAny, ValidationError, model_validator

Size = tuple[int, int]
Extent = tuple[int, int, int]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the config: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


class ModelSection(Section):
    """Base of each family's `model` section."""


class SampleSection(Section):
    """Base of each family's `sample` section; command-line flags of `sample` override its keys.

    Lists have one entry per stage of sampling; a shorter list repeats its last entry.
    precision: `fp32` gives the same video on every device to within a grey level; `tf32` and `bf16` are faster.
    compile: compile the network's blocks; worth it from a few videos on.
    graphs: replay network calls as CUDA graphs, for small models or few tiles; nothing on a CPU.
    fast: keys of this section with the values that `hpdm sample --fast` takes instead.
    """

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compile: bool = False
    graphs: bool = False
    fast: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _fast_is_a_setting(self) -> SampleSection:
        if self.fast:
            changed = {**self.model_dump(mode="json"), **self.fast, "fast": {}}
            try:
                type(self).model_validate_json(json.dumps(changed))
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, e['loc'][:1]))}: {e['msg']}" for e in error.errors())
                raise ValueError(f"fast: {wrong}") from error
        return self


class JointText(Section):
    """A small CLIP text transformer, trained with the denoiser and stored with it: the model file is whole.

    context_length: tokens of a prompt, its start and end marks included; what is longer is cut.
    vocabulary: `store` keeps those pieces of CLIP's byte-pair vocabulary that the words of the training store's
    captions are made of; `full` keeps all 49,406, which at width 128 are 12 MB in bf16. words: null takes the store's.
    """

    mode: Literal["joint"]
    width: Count = 128
    layers: Count = 3
    heads: Count = 4
    context_length: Annotated[int, Field(ge=3)] = 32
    vocabulary: Literal["store", "full"] = "store"
    words: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> JointText:
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads")
        if self.vocabulary == "full" and self.words is not None:
            raise ValueError("words are for `vocabulary: store`; `full` has them all")
        return self


class FrozenText(Section):
    """A pretrained CLIP text tower that stays as it is. Its embeddings lie beside the store (`hpdm cache-text`).

    arch: open_clip's name of the architecture. quick_gelu: whether the weights were trained with QuickGELU, as
    OpenAI's were; a file does not say, and the wrong choice fails silently. path: the weights; a file that is not
    there is looked for by name in $HPDM_WEIGHTS. sha256: of that file. width, pooled_width: of token states and of
    the pooled vector; context_length: tokens of a prompt. What is null is taken from the store's embeddings.
    """

    mode: Literal["frozen"]
    arch: str
    quick_gelu: bool
    path: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    width: Count | None = None
    pooled_width: Count | None = None
    context_length: Annotated[int, Field(ge=3)] | None = None


TextSection = JointText | FrozenText


class ConditionSection(Section):
    """What the model is told about a clip besides its pixels.

    `num_classes: null` takes the number from the training store. `text` says how captions become tokens. `drop`
    is the share of training items whose condition is replaced by the null condition, for classifier-free
    guidance (HPDM §5: 0.1).
    """

    kind: Literal["none", "class", "text"] = "none"
    num_classes: Count | None = None
    text: TextSection | None = Field(default=None, discriminator="mode")
    drop: Fraction = 0.1

    @model_validator(mode="after")
    def _one_kind(self) -> ConditionSection:
        if (self.kind == "text") != (self.text is not None):
            raise ValueError("`kind: text` and a `text` section belong together")
        if self.kind == "text" and self.num_classes is not None:
            raise ValueError("num_classes is for `kind: class`")
        return self


class DataSection(Section):
    """Which prepared store to train on and how clips are taken from it.

    Without `store`, training looks in $HPDM_DATA/<dataset> and ./data/<dataset>. `frame_stride` keeps every
    n-th stored frame. `random_start: false` always takes a clip's first frames. `images: repeat` trains on clips of
    one frame as still videos, jointly with the others; `drop` leaves them out where the model wants more frames.
    """

    dataset: str
    store: str | None = None
    frame_stride: Count = 1
    random_start: bool = True
    images: Literal["drop", "repeat"] = "drop"
    workers: Annotated[int, Field(ge=0)] = 2


class OptimizerSection(Section):
    """Optimiser and learning-rate schedule. Warm-up is linear; `cosine` decays to `final_lr_fraction`.

    name: `muon` moves every two-dimensional parameter that decays (weight matrices, and tables of places, levels and
    latents) and the kernels of 2D and 3D convolutions, and leaves all others, embeddings among them, to AdamW with the
    same rate and decay. betas, eps: of LAMB and AdamW. momentum: of Muon's matrices.
    """

    name: Literal["lamb", "adamw", "muon"] = "lamb"
    lr: Positive = 5.0e-3
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: Fraction = 0.95
    eps: Positive = 1.0e-6
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    clip_norm: Positive | None = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr_fraction: Fraction = 0.0


class EmaSection(Section):
    """Moving averages of the weights; sampling and evaluation use the first track.

    `power`: EDM2's power-function averages, one track per relative width in `widths`.
    `half_life`: one track that forgets half in `half_life_videos` videos, with a start-up ramp so that an
    early average is not the initial weights.
    """

    kind: Literal["power", "half_life", "none"] = "half_life"
    widths: tuple[float, ...] = (0.05, 0.10)
    half_life_videos: Positive = 500_000.0
    every_steps: Count = 1


class TrainSection(Section):
    """The training loop. Steps count per phase where a family trains in phases.

    cuda_graph: replay the whole step from a CUDA graph; worth it where one GPU trains on a few videos a step. Refused
    for models whose steps are not alike (clips given the one before, mixed resolutions), on CPUs and several GPUs;
    `auto` does without there.
    bf16_attention: run the attention kernel in bf16 whatever the precision; `whole`: with its projections.
    residual: what the streams between layers are kept in; `bf16` (only with `precision: bf16`) moves fewer bytes.
    float8: products of MLPs at least 1024 wide in float8 (only with `precision: bf16`; GPUs from Ada and Hopper on).
    fsdp_keep_weights: under `parallel: fsdp`, keep a block's weights gathered from its forward to its backward pass:
    one exchange less, for the memory of all weights.
    async_checkpoint: write checkpoints from a copy in host memory while training goes on.
    """

    max_steps: Count | None = None
    max_videos: Count | None = None
    batch_size: Count = 8
    micro_batch: Count | None = None
    seed: int = 0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    bf16_attention: bool | Literal["whole"] = False
    residual: Literal["fp32", "bf16"] = "fp32"
    float8: bool = False
    compile: bool = False
    cuda_graph: bool | Literal["auto"] = False
    activation_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    fsdp_keep_weights: bool = False
    optimizer: OptimizerSection = OptimizerSection()
    ema: EmaSection = EmaSection()
    log_every_steps: Count = 10
    checkpoint_every_steps: Count = 1000
    keep_checkpoints: Count = 3
    async_checkpoint: bool = True
    sample_every_steps: Count | None = None
    sample_seeds: Count = 4
    nonfinite: Literal["stop", "skip"] = "stop"
    grad_share_every_steps: Count | None = None

    @model_validator(mode="after")
    def _one_clock(self) -> TrainSection:
        if (self.max_steps is None) == (self.max_videos is None):
            raise ValueError("set exactly one of max_steps and max_videos")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        for name, chosen in (("residual: bf16", self.residual == "bf16"), ("float8: true", self.float8)):
            if chosen and self.precision != "bf16":
                raise ValueError(f"{name} needs precision: bf16")
        if self.fsdp_keep_weights and self.parallel != "fsdp":
            raise ValueError("fsdp_keep_weights needs parallel: fsdp")
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps of a phase that does not set its own."""
        return self.max_steps if self.max_steps is not None else -(-int(self.max_videos or 0) // self.batch_size)


class RunConfig(Section):
    """A whole run. `model` and `sample` hold the sections of `family`."""

    family: str
    description: str = ""
    parameters: int | None = Field(default=None, description="stated parameter count; a test checks it")
    model: SerializeAsAny[ModelSection]
    data: DataSection
    train: TrainSection
    sample: SerializeAsAny[SampleSection]
