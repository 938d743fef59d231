"""What a run would do, found out without allocating a weight or reading a pixel: the answer to `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpdm_core.config.schema import RunConfig
from hpdm_core.data.order import plan_clips
from hpdm_core.data.store import VideoStore
from hpdm_core.families.base import Family, Phase
from hpdm_core.sampling.stage import Outline
from hpdm_core.training.conditions import class_condition, one_video
from hpdm_core.training.source import StoreSource, fitted, weightless_family
from hpdm_core.training.state import TrainState, phase_batch, phase_micro, phase_steps


@dataclass(frozen=True)
class PhasePlan:
    """One phase: its length, and what it takes from the store. `clips` is None while there is no store.

    `sizes` are the frame sizes (H, W) it reads, finest first; `frames` the shortest clip it can use.
    `dropped` counts the clips left out by reason.
    """

    name: str
    steps: int
    batch_size: int
    micro_batch: int
    frames: int
    sizes: tuple[tuple[int, int], ...]
    clips: int | None = None
    dropped: Mapping[str, int] | None = None

    @property
    def videos(self) -> int:
        """Training items of the whole phase."""
        return self.steps * self.batch_size

    @property
    def batches_per_epoch(self) -> float | None:
        """Steps in which every clip is seen once."""
        return None if self.clips is None else self.clips / self.batch_size


@dataclass(frozen=True)
class TrainPlan:
    """A run before it starts. `sampling` is the cost of one video at the preset's settings."""

    config: RunConfig
    parameters: int
    phases: tuple[PhasePlan, ...]
    sampling: Outline


def plan_training(config: RunConfig, store_path: Path | None) -> TrainPlan:
    """The plan of training `config` on a store, or without one as far as that goes.

    Raises ConfigError, StoreMismatch or DataError for what would stop the run at its start.
    """
    store: VideoStore | None = None
    if store_path is not None:
        source = StoreSource(store_path, config)
        config, store = fitted(config, source), source.store
    family = weightless_family(config)
    return TrainPlan(
        config=config,
        parameters=sum(p.numel() for p in family.parameters()),
        phases=tuple(_plan_phase(config, family, phase, store) for phase in family.phases()),
        sampling=sampling_outline(config, family),
    )


def sampling_outline(config: RunConfig, family: Family) -> Outline:
    """The cost of one video at the settings of `config`."""
    return family.outline(one_video(config), config.sample)


def _plan_phase(config: RunConfig, family: Family, phase: Phase, store: VideoStore | None) -> PhasePlan:
    train, view = config.train, family.view(phase.name)
    batch = phase_batch(phase, train)
    clips, dropped = None, None
    if store is not None:
        need_labels = class_condition(config) is not None
        images = config.data.images == "repeat"
        chosen = plan_clips(store, view, config.data.frame_stride, need_labels=need_labels, repeat_images=images)
        clips, dropped = len(chosen.kept), chosen.dropped
    return PhasePlan(
        name=phase.name,
        steps=phase_steps(phase, train, TrainState()),
        batch_size=batch,
        micro_batch=min(phase_micro(phase, train) or batch, batch),
        frames=view.frames,
        sizes=tuple(view.sizes),
        clips=clips,
        dropped=dropped,
    )
