"""Ending a phase where its reconstructions are best: adversarial training helps for a while and then diverges.

A phase with a `Plateau` is scored at intervals: the Fréchet distance, over the features of a seeded random
I3D, between clips of the training stream and what the phase's networks make of them. Each score is also a
checkpoint. When the score has not improved for some evaluations, or the steps run out, the phase ends as the
best of these checkpoints left it. All that the rule remembers is in `TrainState`, so a resumed run decides alike.

Shapes: B batch, T H W frames and pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpdm_core.data.window import Batch
from hpdm_core.families.base import Plateau
from hpdm_core.families.weights import CHECKPOINTS
from hpdm_core.metrics.detectors import Detector, build_detector
from hpdm_core.metrics.frechet import Gaussian, Statistics, frechet_distance
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.training.checkpoint import open_checkpoint
from hpdm_core.training.distributed import World
from hpdm_core.training.hooks import LogHook
from hpdm_core.training.loop import Trainer
from hpdm_core.training.resume import run_tensors
from hpdm_core.training.saving import CheckpointWriter
from hpdm_core.training.source import Source
from hpdm_core.training.state import TrainState
from hpdm_core.training.switches import computing
from hpdm_core.video import to_uint8

Score = Callable[[], float]


class PlateauHook:
    """Scores a phase at intervals and ends it; before the log line, which shows the score as `plateau`."""

    def __init__(
        self, trainer: Trainer, run: Path, rule: Plateau, score: Score, line: LogHook, writer: CheckpointWriter
    ) -> None:
        self._trainer, self._run, self._rule, self._score, self._line = trainer, run, rule, score, line
        self._writer = writer

    def due(self, state: TrainState) -> bool:
        """At every interval, and at the end of the phase."""
        return state.step % self._rule.every_steps == 0 or state.finished

    def run(self, state: TrainState) -> None:
        """Score; at the end of the phase go back to the step that scored best."""
        # Every rank scores the same clips; the mean makes them agree to the last bit.
        score = self._trainer.world.mean(torch.tensor(self._score(), device=self._trainer.world.device)).item()
        self._line.notes["plateau"] = score
        state.judge(score)
        if state.misses >= self._rule.patience:
            state.ended = state.finished = True
        if state.finished and state.best_step != state.total_step:
            self._writer.wait()  # the best may still be on its way to disk
            best = open_checkpoint(self._run / CHECKPOINTS / f"step_{state.best_step:08d}")
            best.read_into(run_tensors(self._trainer))
            self._trainer.ema.videos = best.record["ema_videos"]


class FrechetScore:
    """The distance of the first clips of the stream to their reconstructions; the clips' side is computed once."""

    def __init__(self, trainer: Trainer, source: Source, rule: Plateau, rows: int) -> None:
        self._trainer, self._source, self._rule, self._rows = trainer, source, rule, min(rows, rule.clips)
        self._detector: Detector | None = None
        self._real: Gaussian | None = None

    @torch.no_grad()
    def __call__(self) -> float:
        """Lower is better; comparable within one run only."""
        trainer, device = self._trainer, self._trainer.world.device
        if self._detector is None:
            self._detector = build_detector(DetectorSection(name="random-i3d"), weights=None, device=device)
        real, fake = (Statistics(self._detector.dimension) for _ in range(2))
        batches = self._source.batches(
            trainer.family.view(trainer.phase.name),
            start=0,
            batch_size=self._rows,
            micro_batch=self._rows,
            world=World(device),
        )
        for _ in range(-(-self._rule.clips // self._rows)):
            batch: Batch = next(batches)
            with computing(trainer.train, device):
                clips, made = self._rule.reconstruct(batch)
            fake.update(features(self._detector, made))
            if self._real is None:
                real.update(features(self._detector, clips))
        if self._real is None:
            self._real = real.gaussian()
        return frechet_distance(self._real, fake.gaussian())


def features(detector: Detector, videos_BCTHW: Tensor) -> np.ndarray:
    """Float videos in [-1, 1] to features [B, D]; too short ones hold their last frame."""
    clips = to_uint8(videos_BCTHW)
    frames = clips.shape[1]
    index = torch.arange(max(frames, detector.min_frames), device=clips.device).clamp_max(frames - 1)
    return detector.features(clips[:, index]).double().cpu().numpy()
