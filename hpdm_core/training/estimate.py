"""What a preset costs before anything is allocated: parameters, FLOPs, memory by part, days, sampling seconds.

Counts come from a rehearsal on tensors without data; speeds from steps measured on one GPU (measured.py), scaled by
peak rate for others. Not modelled: fragmentation of the allocator, NCCL's buffers, the CUDA context, loading.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hpdm_core.config.schema import RunConfig, TrainSection
from hpdm_core.families.base import Family, Phase
from hpdm_core.sampling.stage import Outline
from hpdm_core.training.distributed import World
from hpdm_core.training.ema import tracks_of
from hpdm_core.training.graph import graph_obstacle
from hpdm_core.training.measured import (
    GPU_TFLOPS,
    SECONDS_PER_KERNEL,
    SECONDS_PER_REPLAYED_KERNEL,
    WORKSPACE,
    fastest,
)
from hpdm_core.training.plan import sampling_outline
from hpdm_core.training.rehearsal import Rehearsal, StepCost
from hpdm_core.training.run import rank_rows
from hpdm_core.training.source import weightless_family
from hpdm_core.training.state import TrainState, phase_batch, phase_micro, phase_steps

GIB = 2**30
CONTEXT = 0.6 * GIB
"""CUDA's own share of a GPU's memory."""
MARGIN = 0.10
"""Error bar of the predicted peak."""


@dataclass(frozen=True)
class RoleEstimate:
    """One role of a phase on each of N GPUs. bytes: by part, `workspace` included. blocks: FLOPs of a video."""

    phase: str
    role: str
    rows: int
    micro_batch: int
    flops: float
    blocks: Mapping[str, float]
    levels: Mapping[str, float]
    bytes: Mapping[str, int]
    step_seconds: float
    largest_micro_batch: int

    @property
    def total_bytes(self) -> int:
        """Peak of one GPU, without CUDA's context."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class PhaseEstimate:
    """A phase: its roles and, over all of them, speed and length."""

    name: str
    steps: int
    videos: int
    videos_per_s: float
    days: float
    roles: tuple[RoleEstimate, ...]


@dataclass(frozen=True)
class StageEstimate:
    """A sampling stage of one video. tiles: of one solver call, the mean rounded up; calls: over all tiles."""

    name: str
    tiles: int
    calls: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Remedy:
    """A change of the config, or several joined by ` --set `, and the peak that it leads to."""

    overrides: str
    bytes: int
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """All of it. `memory` is what a GPU has, in bytes; `rate` the measured step that speeds are taken from."""

    parameters: Mapping[str, int]
    phases: tuple[PhaseEstimate, ...]
    sampling: tuple[StageEstimate, ...]
    sampling_bytes: int
    outline: Outline
    gpus: int
    memory: float
    tflops: float
    remedies: tuple[Remedy, ...]
    checkpoint_bytes: int
    network_bytes_per_step: int

    @property
    def peak(self) -> RoleEstimate:
        """The role that needs most."""
        return max((role for phase in self.phases for role in phase.roles), key=lambda role: role.total_bytes)

    @property
    def verdict(self) -> str:
        """`fits`, `tight` (within the error bar) or `does not fit`."""
        return verdict(self.peak.total_bytes, self.memory)

    @property
    def days(self) -> float:
        """All phases."""
        return sum(phase.days for phase in self.phases)


def verdict(num_bytes: float, memory: float) -> str:
    """`fits`, `tight` (within the error bar) or `does not fit`."""
    free = memory - CONTEXT
    return "fits" if num_bytes * (1 + MARGIN) <= free else "tight" if num_bytes <= free else "does not fit"


def estimate(config: RunConfig, *, gpus: int = 1, memory_gib: float = 80.0, tflops: float = GPU_TFLOPS) -> Estimate:
    """The cost of training and sampling `config`.

    memory_gib: of one GPU. tflops: the dense bf16 rate that its vendor states. Raises ConfigError for a batch that
    does not divide into `gpus`.
    """
    memory = memory_gib * GIB
    rehearsal = Rehearsal(config)
    family, scale = rehearsal.family, tflops / GPU_TFLOPS
    phases = tuple(_phase(rehearsal, phase, gpus, memory, scale) for phase in family.phases())
    outline = sampling_outline(config, weightless_family(config))
    sampling = _sampling(rehearsal, outline, scale)
    parameters = _parameters(family)
    found = Estimate(
        parameters, phases, sampling, rehearsal.sampling_bytes + WORKSPACE, outline, gpus, memory, tflops, (),
        _checkpoint_bytes(config.train, parameters, phases, gpus), _network_bytes(config.train, phases, gpus),
    )  # fmt: skip
    if found.verdict == "does not fit":
        found = Estimate(**{**vars(found), "remedies": _remedies(rehearsal, found)})
    return found


def _phase(rehearsal: Rehearsal, phase: Phase, gpus: int, memory: float, scale: float) -> PhaseEstimate:
    train = rehearsal.config.train
    batch = phase_batch(phase, train)
    roles = tuple(_role(rehearsal, phase, index, gpus, memory, scale) for index in range(len(phase.roles)))
    steps = phase_steps(phase, train, TrainState())
    # Roles that take turns share the steps; the others would be active in every step.
    active = [sum(role.active(step) for step in range(1000)) / 1000 for role in phase.roles]
    seconds = sum(share * role.step_seconds for share, role in zip(active, roles, strict=True))
    return PhaseEstimate(phase.name, steps, steps * batch, batch / seconds, steps * seconds / 86400, roles)


def _role(rehearsal: Rehearsal, phase: Phase, index: int, gpus: int, memory: float, scale: float) -> RoleEstimate:
    train = rehearsal.config.train
    rows, micro = rank_rows(phase_batch(phase, train), phase_micro(phase, train), gpus)
    cost = rehearsal.step(phase, phase.roles[index], rows, micro, resident=rows > micro or gpus > 1)
    parts = {**cost.peak, "workspace": WORKSPACE}
    if _shards(train, gpus) > 1:
        parts = _sharded(parts, rehearsal.family, gpus, kept=train.fsdp_keep_weights, accumulated=rows > micro)
    blocks = block_flops(rehearsal.family, cost)
    world = World(torch.device("cuda"), size=gpus)
    replayed = train.cuda_graph and not graph_obstacle(rehearsal.family, phase, world, rows, micro)
    free = memory - CONTEXT - sum(parts.values()) + parts["activations"]
    largest = max(int(micro * free / parts["activations"] / (1 + MARGIN)), 0)
    return RoleEstimate(
        phase.name, phase.roles[index].name, rows, micro, cost.total_flops, blocks,
        level_flops(rehearsal.family, cost), parts, _step_seconds(cost, train, rows, scale, replayed=replayed),
        max((m for m in range(1, rows + 1) if rows % m == 0 and m <= largest), default=0),
    )  # fmt: skip


def _step_seconds(cost: StepCost, train: TrainSection, rows: int, scale: float, *, replayed: bool) -> float:
    """Micro-batches one after another, each as fast as FLOPs or the number of its kernels allow."""
    rate = fastest(train.precision, bool(train.bf16_attention), train.compile).tflop_per_s * 1e12 * scale
    work = cost.total_flops * cost.micro_batch / rate
    return rows // cost.micro_batch * max(work, cost.kernels * _seconds_per_kernel(replayed))


def _seconds_per_kernel(replayed: bool) -> float:
    return SECONDS_PER_REPLAYED_KERNEL if replayed else SECONDS_PER_KERNEL


def _sharded(parts: Mapping[str, int], family: Family, gpus: int, *, kept: bool, accumulated: bool) -> dict[str, int]:
    """Parts under FSDP2: state divided, two blocks gathered at a time (`kept`: all), the rest gathered throughout.

    accumulated: over several micro-batches, of which the last one divides the gradients; they are whole until then.
    """
    units = [sum(p.numel() * 4 for p in unit.parameters()) for unit in family.compile_units()]
    rest = sum(p.numel() * 4 for p in family.parameters()) - sum(units)
    divided = ("weights", "moments", "averages", *(() if accumulated else ("gradients",)))
    shared = {name: parts[name] // gpus for name in divided}
    largest = max(units, default=0)
    return {**parts, **shared, "gathered": rest + (sum(units) + largest if kept else 3 * largest)}


def block_flops(family: Family, cost: StepCost) -> dict[str, float]:
    """FLOPs of a training video in each repeated block, then `rest`."""
    names = {id(module): name for name, module in family.named_modules()}
    found = {names[id(unit)]: cost.flops_below(names[id(unit)]) for unit in family.compile_units()}
    found = {name: flops for name, flops in found.items() if flops}
    return {**found, "rest": cost.total_flops - sum(found.values())}


def level_flops(family: Family, cost: StepCost) -> dict[str, float]:
    """FLOPs of a training video by level; {} for a family without levels."""
    shares, found = family.level_shares(), {}
    for name, flops in cost.flops.items():
        parents = list(itertools.accumulate(name.split("."), lambda a, b: f"{a}.{b}"))
        owner = next((p for p in reversed(parents) if p in shares), None)
        for level, share in (shares[owner] if owner is not None else {}).items():
            found[level] = found.get(level, 0.0) + share * flops
    return found


def _parameters(family: Family) -> dict[str, int]:
    """By child module of the family, and by child of a child that holds nearly all."""
    found: dict[str, int] = {}
    for name, child in family.named_children():
        for part, module in _split(name, child):
            found[part] = sum(p.numel() for p in module.parameters())
    found["total"] = sum(p.numel() for p in family.parameters())
    direct = found["total"] - sum(v for k, v in found.items() if k != "total")
    return {**found, **({"other": direct} if direct else {})}


def _split(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    parts = [(f"{name}.{child}", m) for child, m in module.named_children() if any(True for _ in m.parameters())]
    return parts if len(parts) > 1 else [(name, module)]


def _sampling(rehearsal: Rehearsal, outline: Outline, scale: float) -> tuple[StageEstimate, ...]:
    sample = rehearsal.config.sample
    rate = fastest(sample.precision, False, sample.compile).tflop_per_s * 1e12 * scale
    per_kernel = _seconds_per_kernel(sample.graphs)
    found = []
    for stage, cost in zip(outline.stages, rehearsal.stages(), strict=True):
        once = max(cost.setup_flops / rate, cost.setup_kernels * SECONDS_PER_KERNEL)
        each = max(cost.call_flops / rate, cost.call_kernels * per_kernel)
        flops = cost.setup_flops + stage.calls * cost.call_flops
        found.append(StageEstimate(stage.name, stage.tiles, stage.tile_calls, flops, once + stage.calls * each))
    return tuple(found)


def _checkpoint_bytes(
    train: TrainSection, parameters: Mapping[str, int], phases: tuple[PhaseEstimate, ...], gpus: int
) -> int:
    """Weights, moments and EMA tracks in the last phase, of all GPUs, and the weights file of the first track."""
    state = phases[-1].roles[0].bytes
    return 2 * 4 * parameters["total"] + (state["moments"] + state["averages"]) * _shards(train, gpus)


def _shards(train: TrainSection, gpus: int) -> int:
    """Into how many parts the state of training is divided."""
    return gpus if train.parallel == "fsdp" else 1


def _network_bytes(train: TrainSection, phases: tuple[PhaseEstimate, ...], gpus: int) -> int:
    """Bytes that one GPU sends per step: a ring all-reduce of the gradients, or FSDP2's gathers and scatter."""
    role = phases[-1].roles[0]
    weights = role.bytes["weights"] * _shards(train, gpus)
    share = (gpus - 1) / gpus
    if train.parallel == "ddp":
        return int(2 * share * role.bytes["gradients"]) if gpus > 1 else 0
    gathers = (1 if train.fsdp_keep_weights else 2) * (role.rows // role.micro_batch)
    return int(share * weights * (gathers + 1))


def _remedies(rehearsal: Rehearsal, found: Estimate) -> tuple[Remedy, ...]:
    """Changes that lower the peak, each rehearsed alone, and where none is enough several of them together."""
    train, config = rehearsal.config.train, rehearsal.config
    changes: dict[str, dict[str, Any]] = {}
    if not train.activation_checkpointing:
        changes["activation_checkpointing"] = {"activation_checkpointing": True}
    if train.precision != "bf16":
        changes["precision"] = {"precision": "bf16"}
    if len(tracks_of(train.ema)) > 1:
        changes["ema.widths"] = {"ema": train.ema.model_copy(update={"widths": train.ema.widths[:1]})}
    if train.parallel == "ddp" and found.gpus > 1:
        changes["parallel"] = {"parallel": "fsdp"}
    micro = _smaller_passes(rehearsal, found.peak, found.gpus)
    fewer = {"micro_batch": {"micro_batch": micro}} if micro else {}
    alone = [_remedy(config, {key: change}, found)[0] for key, change in {**fewer, **changes}.items()]
    return tuple(alone) if any(remedy.fits for remedy in alone) else (*alone, *_together(rehearsal, changes, found))


def _together(rehearsal: Rehearsal, changes: Mapping[str, dict[str, Any]], found: Estimate) -> tuple[Remedy, ...]:
    """The first of `changes` that are enough together, else all, if need be with passes as large as still fit."""
    config = rehearsal.config
    tried: dict[str, dict[str, Any]] = {}
    for key, change in changes.items():
        tried[key] = change
        if len(tried) > 1 and (remedy := _remedy(config, tried, found)[0]).fits:
            return (remedy,)
    if found.peak.micro_batch > 1 and not _has_own_passes(rehearsal, found.peak):
        _, smallest = _remedy(config, {**tried, "micro_batch": {"micro_batch": 1}}, found)
        tried["micro_batch"] = {"micro_batch": _smaller_passes(rehearsal, smallest, found.gpus) or 1}
    return (_remedy(config, tried, found)[0],) if len(tried) > 1 else ()


def _smaller_passes(rehearsal: Rehearsal, peak: RoleEstimate, gpus: int) -> int:
    """The `train.micro_batch` under which `peak` should fit, that the config and every phase can take; 0 for none."""
    if _has_own_passes(rehearsal, peak):
        return 0
    train, phases = rehearsal.config.train, rehearsal.family.phases()
    shared = [train.batch_size, *(phase_batch(phase, train) // gpus for phase in phases if phase.micro_batch is None)]
    sizes = range(1, peak.largest_micro_batch + 1)
    return max((n for n in sizes if all(rows % min(n, rows) == 0 for rows in shared)), default=0)


def _has_own_passes(rehearsal: Rehearsal, role: RoleEstimate) -> bool:
    """Whether the phase of `role` has a micro-batch of its own, and does not read `train`'s."""
    return next(p for p in rehearsal.family.phases() if p.name == role.phase).micro_batch is not None


def _remedy(config: RunConfig, changes: Mapping[str, dict[str, Any]], found: Estimate) -> tuple[Remedy, RoleEstimate]:
    """`changes` by the key of `train` that they are set by, and the role that needs most under them."""
    train = config.train.model_copy(update={k: v for change in changes.values() for k, v in change.items()})
    rehearsal = Rehearsal(config.model_copy(update={"train": train}))
    roles = [
        _role(rehearsal, phase, index, found.gpus, found.memory, 1.0)
        for phase in rehearsal.family.phases()
        for index in range(len(phase.roles))
    ]
    peak = max(roles, key=lambda role: role.total_bytes)
    texts = [f"train.{key}={_value_text(train, key)}" for key in changes]
    fits = verdict(peak.total_bytes, found.memory) != "does not fit"
    return Remedy(" --set ".join(texts), peak.total_bytes, fits), peak


def _value_text(train: TrainSection, key: str) -> str:
    value: object = train
    for name in key.split("."):
        value = getattr(value, name)
    return str(list(value) if isinstance(value, tuple) else value).lower()
