"""Where a run stands, in plain numbers. The clock is videos seen; steps follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpdm_core.config.schema import TrainSection
from hpdm_core.families.base import Phase


@dataclass
class TrainState:
    """Counters of a run. They are saved as they stand, so everything here is a number or a string.

    `step` counts within the phase, `total_step` over all phases. `videos_seen` never restarts: it is the
    position of the next item in the data stream and the index of its randomness. `seconds` is training
    time without checkpoints and samples. `base_sha256` is the hash of the weights file that a fine-tuning
    began with. Where the phase has a plateau rule, `best` is its lowest score, `best_step` the total step of that,
    `misses` the evaluations since, and `ended` says that the rule has ended the phase.
    """

    phase: str = ""
    step: int = 0
    total_step: int = 0
    videos_seen: int = 0
    phase_start: int = 0
    seconds: float = 0.0
    finished: bool = False
    base_sha256: str = ""
    best: float | None = None
    best_step: int = 0
    misses: int = 0
    ended: bool = False
    meter: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def phase_videos(self) -> int:
        """Videos seen in this phase."""
        return self.videos_seen - self.phase_start

    def enter(self, phase: str) -> None:
        """Begin `phase` at its first step."""
        self.phase, self.step, self.phase_start, self.finished = phase, 0, self.videos_seen, False
        self.best, self.best_step, self.misses, self.ended = None, 0, 0, False
        self.meter.clear()

    def advance(self, videos: int) -> None:
        """Count one optimiser step on `videos` videos."""
        self.step += 1
        self.total_step += 1
        self.videos_seen += videos

    def judge(self, score: float) -> None:
        """Count an evaluation of the phase; lower is better."""
        if self.best is None or score < self.best:
            self.best, self.best_step, self.misses = score, self.total_step, 0
        else:
            self.misses += 1


def phase_batch(phase: Phase, train: TrainSection) -> int:
    """The global batch size of `phase`."""
    return phase.batch_size or train.batch_size


def phase_micro(phase: Phase, train: TrainSection) -> int | None:
    """The rows of one pass of `phase`; None for all rows of a rank at once."""
    return phase.micro_batch or train.micro_batch


def phase_steps(phase: Phase, train: TrainSection, state: TrainState) -> int:
    """Steps of `phase` from its start to its end, given how far it has come.

    Under `max_videos` the remaining videos decide, so a resumed run with another batch size still ends at
    the same number of videos.
    """
    if phase.steps is not None:
        return phase.steps
    if train.max_steps is not None:
        return train.max_steps
    remaining = max((train.max_videos or 0) - state.phase_videos, 0)
    return state.step + -(-remaining // phase_batch(phase, train))
