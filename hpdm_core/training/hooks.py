"""What happens between steps: the log line, checkpoints, samples, each part's share of the gradient."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpdm_core.errors import NumericsError
from hpdm_core.families.base import Family
from hpdm_core.rng import BatchStreams
from hpdm_core.training.checkpoint import writing
from hpdm_core.training.loop import Trainer
from hpdm_core.training.optim import learning_rate
from hpdm_core.training.state import TrainState, phase_batch
from hpdm_core.training.switches import computing

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
SAMPLES = "samples"
BOARD = "tensorboard"

SampleFn = Callable[[Family, Path], None]
"""Writes samples of a family into a folder that does not exist yet."""


class RunLog:
    """`log.jsonl` of a run, one object a line, and the same numbers in TensorBoard where it is installed."""

    def __init__(self, run: Path, *, keep_bytes: int, step: int, enabled: bool) -> None:
        """Open the log cut back to its first `keep_bytes` bytes: what a resumed run has really lived."""
        self._path = run / LOG_FILE
        self._enabled = enabled
        self._board = _tensorboard(run, step) if enabled else None
        if enabled and self._path.exists() and self._path.stat().st_size > keep_bytes:
            os.truncate(self._path, keep_bytes)

    @property
    def size(self) -> int:
        """Bytes written so far, on disk."""
        return self._path.stat().st_size if self._path.exists() else 0

    def write(self, entry: dict[str, Any], total_step: int) -> None:
        """Append one line and make it durable, so that a checkpoint never knows more than the log."""
        if not self._enabled:
            return
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._board is not None:
            for name, value in _scalars(entry):
                self._board.add_scalar(name, value, total_step)
            self._board.flush()


def _tensorboard(run: Path, step: int) -> Any:
    """A TensorBoard writer that hides what an earlier, cut-off run wrote beyond `step`; None if absent."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / BOARD), purge_step=step + 1)


def _scalars(entry: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in entry.items():
        if isinstance(value, dict):
            flat += [(f"{name}/{key}", part) for key, part in value.items()]
        elif isinstance(value, (int, float)) and name not in ("step", "videos_seen"):
            flat.append((name, value))
    return flat


class LogHook:
    """One line every `log_every_steps` steps: means since the last line, speed, memory, time left."""

    def __init__(self, trainer: Trainer, log: RunLog) -> None:
        self._trainer, self._log = trainer, log
        self._since = (trainer.state.seconds, trainer.state.videos_seen)
        train = trainer.train
        plateau = trainer.phase.plateau
        notes = (train.grad_share_every_steps, plateau and plateau.every_steps)
        self._intervals = [n for n in (train.log_every_steps, *notes) if n]
        self.notes: dict[str, Any] = {}

    def due(self, state: TrainState) -> bool:
        """At every interval (also of what leaves notes for the line), and at the end of the phase."""
        return any(state.step % every == 0 for every in self._intervals) or state.finished

    def run(self, state: TrainState) -> None:
        """Write the line to the run's log and to the logging module."""
        entry = self._entry(state)
        self._log.write(entry, state.total_step)
        levels = " ".join(f"{name} {value:.4f}" for name, value in entry["loss_levels"].items())
        rate = entry["videos_per_s"]
        left = (self._trainer.total_steps - state.step) * phase_batch(self._trainer.phase, self._trainer.train)
        logger.info(
            "%s step %d/%d · loss %.4f (%s) · %.1f videos/s · %.2f GiB · lr %.2e · grad %.3g · %s left",
            *(state.phase, state.step, self._trainer.total_steps, entry["loss"] or float("nan"), levels),
            *(rate, entry["memory_gib"], entry["lr"], entry["grad_norm"] or float("nan")),
            _clock(left / rate if rate > 0 else 0.0),
        )

    def _entry(self, state: TrainState) -> dict[str, Any]:
        means = {name: total / count for name, (total, count) in state.meter.items()}
        state.meter.clear()
        roles = [role.name for role in self._trainer.roles]
        losses = [means[f"{role}/loss"] for role in roles if f"{role}/loss" in means]
        norms = [means[f"{role}/grad_norm"] for role in roles if f"{role}/grad_norm" in means]
        parts = {
            name.partition("/")[2]: value for name, value in means.items() if not name.endswith(("/loss", "/grad_norm"))
        }
        seconds, videos = state.seconds - self._since[0], state.videos_seen - self._since[1]
        self._since = (state.seconds, state.videos_seen)
        section = self._trainer.roles[0].section
        entry = {
            "step": state.step,
            "phase": state.phase,
            "videos_seen": state.videos_seen,
            # Null where every step of the interval was skipped.
            "loss": sum(losses) if losses else None,
            "loss_levels": parts,
            "grad_norm": norms[0] if norms else None,
            "lr": learning_rate(section, state.step - 1, self._trainer.total_steps),
            "videos_per_s": videos / seconds if seconds > 0 else 0.0,
            "memory_gib": _peak_memory_gib(self._trainer.world.device),
            "seconds": round(state.seconds, 3),
            **self.notes,
        }
        self.notes = {}
        return entry


def _peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process on its device, or of its resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return 0.0  # Windows offers no such count without another package
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class GradShareHook:
    """How hard each part of the loss pulls: the gradient norm of each part alone, on the last micro-batch.

    It differentiates an extra forward pass, so that the training step itself stays as it is.
    """

    def __init__(self, trainer: Trainer, every: int, log: LogHook) -> None:
        self._trainer, self._every, self._log = trainer, every, log

    def due(self, state: TrainState) -> bool:
        """At every interval."""
        return state.step % self._every == 0

    def run(self, state: TrainState) -> None:
        """Leave `grad_share` (part name to its share of the sum of norms) for the log line."""
        trainer = self._trainer
        batch = trainer.micros[-1]
        streams = BatchStreams(trainer.train.seed, batch.positions, trainer.world.device)
        norms: dict[str, Tensor] = {}
        for role in trainer.roles:
            # Eager: compiled blocks free what a second backward pass through the same graph needs.
            eager = torch.compiler.set_stance("force_eager")
            with eager, computing(trainer.train, trainer.world.device):
                terms = trainer.family.losses(role.name, batch, streams).terms
            for name, term in terms.items():
                params = list(role.params.values())
                grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
                norms[name] = torch.nn.utils.get_total_norm([g for g in grads if g is not None])
        values = {name: norm.item() for name, norm in norms.items()}
        total = sum(values.values())
        self._log.notes["grad_share"] = {name: v / total if total else 0.0 for name, v in values.items()}


class CheckpointHook:
    """A checkpoint at each of some intervals of steps and at the end of the phase."""

    def __init__(self, intervals: Sequence[int], save: Callable[[TrainState], None]) -> None:
        self._intervals, self._save = intervals, save
        self._saved_step = -1

    def due(self, state: TrainState) -> bool:
        """At every interval, and at the end of the phase."""
        return any(state.step % every == 0 for every in self._intervals) or state.finished

    def run(self, state: TrainState) -> None:
        """Save, unless this very step is saved already."""
        if state.total_step != self._saved_step:
            self._save(state)
            self._saved_step = state.total_step


class SampleHook:
    """Samples of the averaged weights every `sample_every_steps` steps, into RUN/samples/step_XXXXXXXX."""

    def __init__(self, trainer: Trainer, run: Path, every: int, sample: SampleFn) -> None:
        self._trainer, self._run, self._every, self._sample = trainer, run, every, sample

    def due(self, state: TrainState) -> bool:
        """At every interval, and at the end of the phase."""
        return state.step % self._every == 0 or state.finished

    def run(self, state: TrainState) -> None:
        """Sample on every rank (sharded weights need them all); the sampler writes on the main one."""
        folder = self._run / SAMPLES / f"step_{state.total_step:08d}"
        family = self._trainer.family
        family.eval()
        try:
            # Eager: the shapes of sampling would only crowd the compiled blocks' caches.
            eager = torch.compiler.set_stance("force_eager")
            with self._trainer.ema.applied(), torch.no_grad(), eager:
                self._sample(family, folder)
        except NumericsError as error:  # a picture is not worth the run, whose own guard watches its numbers
            logger.warning("no samples at step %d: %s", state.total_step, error)
        finally:
            family.train()
        self._trainer.world.barrier()
