"""A whole run: the run directory, resume, the phases one after the other. `train` is the entry point.

RUN/config.yaml      the resolved config
RUN/data.json        where the store was, for `report`; training itself never reads it
RUN/.lock            held while a process trains
RUN/log.jsonl        one object a line, cut back to the checkpoint on resume
RUN/checkpoints/     see checkpoint.py
RUN/samples/         what the model makes while it trains
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from hpdm_core.config.load import dump_config
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.store import STORE_FILE
from hpdm_core.errors import ConfigError, StoppedOnRequest
from hpdm_core.families.base import Family, Phase
from hpdm_core.families.registry import build_family
from hpdm_core.families.weights import CHECKPOINTS, WEIGHTS_FILE, finished_checkpoints
from hpdm_core.nn.precision import matmul_precision
from hpdm_core.rng import derive_seed
from hpdm_core.training.checkpoint import Checkpoint, newest_valid, writing
from hpdm_core.training.claim import LOCK_FILE, claimed_run
from hpdm_core.training.distributed import World, distribute, joined_world
from hpdm_core.training.ema import Ema
from hpdm_core.training.graph import check_graphable, graph_obstacle
from hpdm_core.training.guard import NonfiniteGuard, StopRequest
from hpdm_core.training.hooks import (
    BOARD,
    LOG_FILE,
    SAMPLES,
    CheckpointHook,
    GradShareHook,
    LogHook,
    RunLog,
    SampleFn,
    SampleHook,
)
from hpdm_core.training.loop import Hook, Trainer
from hpdm_core.training.optim import RoleOptimizer
from hpdm_core.training.origin import Origin
from hpdm_core.training.plateau import FrechetScore, PlateauHook
from hpdm_core.training.resume import check_resumable, optimizer_tensors, restored_state, run_contents, run_tensors
from hpdm_core.training.samples import grid_sampler
from hpdm_core.training.saving import CheckpointWriter
from hpdm_core.training.source import DATA_FILE, Source, StoreSource, find_store, fitted, note_store
from hpdm_core.training.state import TrainState, phase_batch, phase_micro
from hpdm_core.training.switches import apply_switches

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
OWN_NAMES = {CONFIG_FILE, DATA_FILE, LOG_FILE, CHECKPOINTS, SAMPLES, BOARD, "scores"}
"""What training and scoring write into a run, beside its lock."""


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run stands. `weights` is the file that sampling loads."""

    run: Path
    step: int
    videos_seen: int
    weights: Path
    resumed: bool


def train(
    config: RunConfig,
    store_path: str | Path | None = None,
    out: str | Path = "runs/run",
    *,
    fresh: bool = False,
    time_limit: float | None = None,
    device: str | None = None,
    origin: Origin | None = None,
) -> TrainResult:
    """Train `config` on the store at `store_path` (None: where the config says) into the run directory `out`.

    The same call again continues from the newest good checkpoint. `time_limit` is in seconds. A new run
    begins with the weights of `origin`, if one is given, instead of random ones. Raises
    StoppedOnRequest after a clean checkpoint when a signal or the limit ends the run early; DataError,
    StoreMismatch, IncompatibleCheckpoint, CheckpointError and NumericsError as their names say.
    """
    store = find_store(config, Path(store_path) if store_path else None)
    source = StoreSource(store, config)
    return fit(config, source, Path(out), fresh=fresh, time_limit=time_limit, device=device, origin=origin)


def fit(
    config: RunConfig,
    source: Source,
    out: Path,
    *,
    fresh: bool = False,
    time_limit: float | None = None,
    device: str | None = None,
    sample: SampleFn | None = None,
    origin: Origin | None = None,
) -> TrainResult:
    """`train` on any source of batches; `sample` replaces the sampler that `sample_every_steps` runs."""
    config = fitted(config, source)
    stop = StopRequest(time_limit)
    with joined_world(device) as world, matmul_precision(config.train.precision), stop.listening():
        check_place(out, fresh)
        return _Run(config, source, out, world, stop, sample, origin).complete()


class _Run:
    """One `fit` call: builds the family once and takes it through its phases."""

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        out: Path,
        world: World,
        stop: StopRequest,
        sample: SampleFn | None,
        origin: Origin | None,
    ) -> None:
        self.config, self.source, self.out = config, source, out
        self.world, self.stop, self.sample, self.origin = world, stop, sample, origin

    def complete(self) -> TrainResult:
        """Run every phase that is not finished yet."""
        checkpoint = newest_valid(self.out)
        if checkpoint is not None:
            check_resumable(checkpoint, self.config, self.source, self.world)
            logger.info("continuing from %s", checkpoint.path)
        state, resumed = restored_state(checkpoint), checkpoint is not None
        if self.origin is not None and resumed:
            self.origin.check_same(state, self.out)
        elif self.origin is not None:
            state.base_sha256 = self.origin.sha256
        family = self._family(new=not resumed)
        self._check_graphs(family)
        self.world.barrier()
        with self._claimed():
            return self._phases(family, state, checkpoint)

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """The run directory with its config, held by the main rank."""
        if not self.world.main:
            yield
            return
        with ExitStack() as stack:
            with writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(claimed_run(self.out))
                (self.out / CONFIG_FILE).write_text(dump_config(self.config), encoding="utf-8")
                if isinstance(self.source, StoreSource):
                    note_store(self.out, self.source.store)
            yield

    def _phases(self, family: Family, state: TrainState, checkpoint: Checkpoint | None) -> TrainResult:
        """Run every phase from `checkpoint` on."""
        resumed = checkpoint is not None
        keep = checkpoint.record["log_bytes"] if checkpoint else 0
        log = RunLog(self.out, keep_bytes=keep, step=state.total_step, enabled=self.world.main)
        phases = list(family.phases())
        if checkpoint is not None:
            del phases[: [phase.name for phase in phases].index(state.phase)]
        for phase in phases:
            self._run_phase(family, phase, state, checkpoint, log)
            checkpoint = None
            # A trainer, its hooks and its captured steps know each other: such circles would keep the phase's moments,
            # averages and graphs until Python happens to look, while the next phase, or sampling, needs their memory.
            gc.collect()
        weights = self.out / CHECKPOINTS / f"step_{state.total_step:08d}" / WEIGHTS_FILE
        return TrainResult(self.out, state.total_step, state.videos_seen, weights, resumed)

    def _family(self, *, new: bool) -> Family:
        """The family with its initial weights, which depend on the seed and the origin, not on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.train.seed, "init"))
            family = build_family(self.config)
            if new and self.origin is not None:
                self.origin.grow(family)
        family = family.train().to(self.world.device)
        apply_switches(family, self.config.train)
        return family

    def _check_graphs(self, family: Family) -> None:
        """Refuse `train.cuda_graph` now where any phase would, not after the phases before it."""
        train = self.config.train
        for phase in family.phases() if train.cuda_graph is True else ():
            rows, micro = rank_rows(phase_batch(phase, train), phase_micro(phase, train), self.world.size)
            check_graphable(family, phase, self.world, rows, micro)

    def _run_phase(
        self, family: Family, phase: Phase, state: TrainState, checkpoint: Checkpoint | None, log: RunLog
    ) -> None:
        """Train `phase` from `checkpoint`, or from its start, to its end; StoppedOnRequest if asked to stop."""
        if checkpoint is None:
            state.enter(phase.name)
        trainer = self._trainer(family, phase, state)
        if checkpoint is not None:
            checkpoint.read_into(run_tensors(trainer))
            trainer.ema.videos = checkpoint.record["ema_videos"]
        elif self.origin is not None and state.total_step == 0:
            self.origin.read_moments(optimizer_tensors(trainer))
        train = self.config.train
        with CheckpointWriter(
            self.out, self.world, train.keep_checkpoints, background=train.async_checkpoint
        ) as writer:
            intervals = [train.checkpoint_every_steps]
            if phase.plateau is not None:
                intervals.append(phase.plateau.every_steps)
            save = CheckpointHook(
                intervals,
                lambda _: writer.save(run_contents(self.config, self.source, trainer, log.size), best=state.best_step),
            )
            trainer.hooks = self._hooks(trainer, log, save, writer)
            for _ in trainer.steps():
                writer.check()
                if self.world.any(bool(self.stop.reason)) and not state.finished:
                    save.run(state)
                    raise StoppedOnRequest(
                        f"stopped after step {state.step} ({self.stop.reason or 'another rank was asked to stop'})",
                        hint="run the same command again to continue",
                    )

    def _trainer(self, family: Family, phase: Phase, state: TrainState) -> Trainer:
        """Everything that steps `phase` from where `state` stands, with untrained optimisers."""
        train, world = self.config.train, self.world
        rows, micro = rank_rows(phase_batch(phase, train), phase_micro(phase, train), world.size)
        trained = {id(p) for role in phase.roles for m in role.modules for p in family.get_submodule(m).parameters()}
        for param in family.parameters():
            param.requires_grad_(id(param) in trained)
            param.grad = None  # of the phase before
        module = distribute(family, world, train.parallel, len(phase.roles), keep_weights=train.fsdp_keep_weights)
        roles = [RoleOptimizer(family, role, train.optimizer) for role in phase.roles]
        params = {name: p for role in roles for name, p in role.params.items()}
        batches = self.source.batches(
            family.view(phase.name),
            start=state.videos_seen,
            batch_size=rows * world.size,
            micro_batch=micro,
            world=world,
        )
        guard = NonfiniteGuard(train.nonfinite)
        ema = Ema(train.ema, params)
        if train.cuda_graph == "auto":
            reason = graph_obstacle(family, phase, world, rows, micro)
            if reason:
                logger.info("steps do not run as a CUDA graph: %s", reason)
            train = train.model_copy(update={"cuda_graph": not reason})
        return Trainer(train, phase, family, module, roles, ema, batches, state, world, guard)

    def _hooks(self, trainer: Trainer, log: RunLog, save: CheckpointHook, writer: CheckpointWriter) -> list[Hook]:
        """The hooks in the order in which they run; the log line comes before the checkpoint that counts it."""
        train = self.config.train
        line = LogHook(trainer, log)
        hooks: list[Hook] = [line, save]
        if train.grad_share_every_steps is not None:
            if train.parallel == "fsdp":
                raise ConfigError(
                    "gradient shares cannot be measured on sharded weights",
                    hint="set train.grad_share_every_steps=null or train.parallel=ddp",
                )
            hooks.insert(0, GradShareHook(trainer, train.grad_share_every_steps, line))
        rule = trainer.phase.plateau
        if rule is not None:
            rows = phase_micro(trainer.phase, train) or phase_batch(trainer.phase, train) // self.world.size
            score = FrechetScore(trainer, self.source, rule, rows)
            hooks.insert(0, PlateauHook(trainer, self.out, rule, score, line, writer))
        if train.sample_every_steps is not None:
            sample = self.sample or grid_sampler(self.config, self.source, self.world)
            hooks.append(SampleHook(trainer, self.out, train.sample_every_steps, sample))
        return hooks


def check_place(out: Path, fresh: bool = False) -> None:
    """Raise ConfigError where `out` cannot be a run, is somebody else's folder, or with `fresh` where it is used.

    Every rank asks before any of them writes.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", hint="--out names a folder")
    if (out / STORE_FILE).exists():
        raise ConfigError(f"{out} is a store of clips, and no place for a run", hint="choose another --out")
    if foreign := _foreign(out):
        listed = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise ConfigError(f"{out} is not empty and holds no run: {listed}", hint="give another --out")
    if fresh and out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            f"--fresh was given, and the run directory {out} is not empty",
            hint="choose another --out, remove the directory, or leave --fresh away to continue",
        )


def _foreign(out: Path) -> list[str]:
    """The names in `out` that no run writes; none where a run has begun, beside which anything may lie.

    Hidden files are nobody's, and a job's own log may be there before the job.
    """
    if not out.is_dir() or (out / LOCK_FILE).exists() or finished_checkpoints(out):
        return []
    names = sorted(path.name for path in out.iterdir() if path.suffix not in (".log", ".out", ".err"))
    return [name for name in names if name not in OWN_NAMES and not name.startswith(".")]


def rank_rows(batch_size: int, micro_batch: int | None, world_size: int) -> tuple[int, int]:
    """(rows of one rank's share of a batch, rows of its micro-batches); ConfigError if it does not divide."""
    rows, rest = divmod(batch_size, world_size)
    micro = min(micro_batch or rows, rows)
    if rest or not rows or rows % micro:
        hint = "make train.batch_size a multiple of (number of ranks) x (train.micro_batch)"
        if rows and not rest:
            fitting = [n for n in range(1, rows + 1) if rows % n == 0]
            below, above = max(n for n in fitting if n < micro), min(n for n in fitting if n > micro)
            hint = f"let train.micro_batch, or the phase's own, be {below} or {above}: it must divide {rows} rows"
        raise ConfigError(
            f"a batch of {batch_size} does not divide into {world_size} ranks with micro-batches of {micro}", hint=hint
        )
    return rows, micro
