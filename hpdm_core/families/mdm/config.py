"""The `model` and `sample` sections of a matryoshka preset, with every ablation as a switch.

Levels are listed innermost first: level 0 is the smallest picture and holds nearly all of the network.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpdm_core.config.schema import (
    ConditionSection,
    Count,
    Extent,
    Fraction,
    ModelSection,
    SampleSection,
    Section,
    Size,
)

HEADS = 8
"""Heads of attention within a picture (MDM spec §2.2)."""

FRAME_HEAD_DIM = 32
"""Width of a head of attention over frames (MDM spec §6)."""

Layers = Annotated[int, Field(ge=0)]


class NestLevel(Section):
    """One resolution and the U-Net around the next smaller one.

    channels: width per stage; each stage but the last halves what `shrink` names. blocks: residual blocks
    per stage going down (one more going up). attention: layers after each residual block, per stage, within
    a picture and to the condition tokens; time_attention: likewise over frames. normalize: divide the input by
    its standard deviation (the middle network of the paper's 1024 model). What remains after the last stage has
    the frames and size of the level below; the innermost level has a middle block there.
    """

    frames: Count = 1
    size: Size
    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    blocks: tuple[Count, ...]
    attention: tuple[Layers, ...] = ()
    feed_forward: bool = False
    time_attention: tuple[Layers, ...] = ()
    shrink: Literal["space", "time"] = "space"
    normalize: bool = False

    @property
    def extent(self) -> Extent:
        """(frames, height, width)."""
        return (self.frames, *self.size)

    @property
    def bottleneck(self) -> Extent:
        """What the stages shrink `extent` to."""
        by = 2 ** (len(self.channels) - 1)
        frames, height, width = self.extent
        return (frames // by, height, width) if self.shrink == "time" else (frames, height // by, width // by)

    def layers(self, kind: Literal["attention", "time_attention"]) -> tuple[int, ...]:
        """Attention layers of one kind per stage; zeros where none are listed."""
        return getattr(self, kind) or (0,) * len(self.channels)

    @model_validator(mode="after")
    def _consistent(self) -> NestLevel:
        stages = len(self.channels)
        for name in ("blocks", "attention", "time_attention"):
            listed = getattr(self, name)
            if len(listed) != stages and (listed or name == "blocks"):
                raise ValueError(f"{name} has {len(listed)} entries for {stages} stages")
        by = 2 ** (stages - 1)
        shrunk = (self.frames,) if self.shrink == "time" else self.size
        if any(side % by for side in shrunk):
            raise ValueError(f"{self.shrink} {list(shrunk)} cannot be halved {stages - 1} times")
        for width, within, over in zip(
            self.channels, self.layers("attention"), self.layers("time_attention"), strict=True
        ):
            if (within and width % HEADS) or (over and width % min(width, FRAME_HEAD_DIM)):
                raise ValueError(f"a width of {width} does not divide into heads")
        for stage, layers in enumerate(self.layers("time_attention")):
            size = self.size if self.shrink == "time" else tuple(side // 2**stage for side in self.size)
            if layers and any(side % 2 for side in size):
                raise ValueError(f"attention over frames needs an even size, and stage {stage} has {list(size)}")
        return self


class NestPhase(Section):
    """A stretch of training of the `levels` innermost levels; null takes `train`'s number."""

    name: str
    levels: Count
    steps: Count | None = None
    batch_size: Count | None = None
    micro_batch: Count | None = None


class MdmModel(ModelSection):
    """The nested network and its diffusion.

    shift_power: p of SNR_r = SNR / s_r^p (1: the paper's 256 model, 2: its 1024 model). loss_space: the
    released code trains v-predictions by the error of the implied noise. level_weights: factors of the
    losses. row_mix: how many rows of a batch stop at each level, innermost first, as proportions; null runs all
    rows through all levels. phases: null trains one level more in each phase, all for `train.max_steps`.
    """

    levels: Annotated[tuple[NestLevel, ...], Field(min_length=1)]
    embedding_dim: Annotated[int, Field(ge=8, multiple_of=8)] = 1024
    condition_dim: Count = 1024
    condition: ConditionSection = ConditionSection()
    shift_power: Annotated[float, Field(ge=0.0)] = 1.0
    loss_space: Literal["eps", "v"] = "eps"
    level_weights: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    row_mix: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    phases: tuple[NestPhase, ...] | None = None
    num_times: Annotated[int, Field(ge=2)] = 1000

    @property
    def scales(self) -> tuple[float, ...]:
        """s_r per level: the side of the level, its frames laid out as one picture, over the innermost side."""
        volumes = [math.prod(level.extent) for level in self.levels]
        return tuple(math.sqrt(v / volumes[0]) for v in volumes)

    @property
    def weights(self) -> tuple[float, ...]:
        """The factor of each level's loss."""
        return self.level_weights or (1.0,) * len(self.levels)

    def phase_list(self) -> tuple[NestPhase, ...]:
        """The phases, those of the paper if none are listed: low, then one level more at a time, then full."""
        if self.phases is not None:
            return self.phases
        total = len(self.levels)
        between = ["mid"] if total == 3 else [f"mid{i}" for i in range(1, total - 1)]
        names = (["low", *between] if total > 1 else []) + ["full"]
        return tuple(NestPhase(name=name, levels=i + 1) for i, name in enumerate(names))

    def row_shares(self, num_levels: int) -> tuple[float, ...]:
        """Per level of the innermost `num_levels`, the share of rows that reaches it; 1 at level 0."""
        if self.row_mix is None:
            return (1.0,) * num_levels
        total = sum(self.row_mix)
        return tuple(sum(self.row_mix[level:]) / total for level in range(num_levels))

    @model_validator(mode="after")
    def _consistent(self) -> MdmModel:
        for k, (inner, outer) in enumerate(itertools.pairwise(self.levels)):
            if outer.bottleneck != inner.extent:
                below = list(inner.extent)
                raise ValueError(f"level {k + 1} shrinks to {list(outer.bottleneck)}; level {k} inside it is {below}")
        for name in ("level_weights", "row_mix"):
            listed = getattr(self, name)
            if listed is not None and len(listed) != len(self.levels):
                raise ValueError(f"{name} has {len(listed)} entries for {len(self.levels)} levels")
        if self.row_mix is not None and self.row_mix[-1] == 0:
            raise ValueError("row_mix must send some rows through every level: its last entry is 0")
        order = [phase.levels for phase in self.phase_list()]
        if order != sorted(order) or not order or order[-1] != len(self.levels):
            raise ValueError(f"phases train {order} levels: the numbers must not fall and must end with all")
        if len({phase.name for phase in self.phase_list()}) != len(order):
            raise ValueError("two phases have the same name")
        return self


class MdmSample(SampleSection):
    """Joint sampling of all levels (MDM spec §5). The lists have one entry: there is one stage.

    solver: the paper's is DDPM in 250 steps; eta is for `ddim`, churn for `heun`. threshold: hold clean estimates to
    [-1, 1] by clipping, or by Imagen's dynamic threshold at quantile `percentile`. guidance: 1 is the plain
    conditional model. level: which level to return; null takes the one of the size asked for, or the largest.
    joint: a smaller level is a part of the full joint process; false leaves the levels outside it away, which
    is cheaper and right for models trained with `row_mix`. chunk: videos per network call (padded, so that results
    do not depend on how many are made at once).
    """

    steps: tuple[Count] = (250,)
    solver: tuple[str] = ("ancestral",)
    eta: Fraction = 1.0
    churn: Annotated[float, Field(ge=0.0)] = 0.0
    threshold: Literal["clip", "dynamic", "none"] = "clip"
    percentile: Annotated[float, Field(gt=0.0, le=1.0)] = 0.995
    guidance: tuple[float] = (1.0,)
    level: Annotated[int, Field(ge=0)] | None = None
    joint: bool = True
    chunk: Count = 1
