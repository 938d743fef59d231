"""What a run carries over from one process to the next, and whether it may be carried over at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hpdm_core.config.load import flat, plain_config
from hpdm_core.config.schema import RunConfig
from hpdm_core.errors import IncompatibleCheckpoint
from hpdm_core.families.base import Family
from hpdm_core.families.weights import WeightsHeader
from hpdm_core.training.checkpoint import Checkpoint, Contents, own_share
from hpdm_core.training.distributed import World, whole
from hpdm_core.training.ema import Ema
from hpdm_core.training.loop import Trainer
from hpdm_core.training.source import Source
from hpdm_core.training.state import TrainState

logger = logging.getLogger(__name__)

FROZEN = ("family", "model", "train.optimizer.name", "train.ema.kind", "train.ema.widths")
"""Keys (with everything below them) that decide which tensors a checkpoint holds or what they mean."""

FREE = ("model.training",)
"""Keys below a frozen one that may change all the same: a family's own training settings."""

REORDERING = {
    "train.batch_size": "the data order goes on where it was, in batches of another size",
    "train.seed": "the order of clips and all noise change from here on",
}
"""Keys that may change, and what a change does to the run."""


def run_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that the rest of the run depends on, by name; reading a checkpoint writes into these."""
    return {
        **{f"model/{name}": t for name, t in _own_tensors(trainer.family)},
        **optimizer_tensors(trainer),
        **{f"ema/{name}": t for name, t in trainer.ema.tensors().items()},
    }


def optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """The optimisers' part of `run_tensors`."""
    return {f"optim/{name}": t for role in trainer.roles for name, t in role.tensors().items()}


def _own_tensors(family: Family) -> Iterator[tuple[str, Tensor]]:
    """The state dict without second names of tied tensors."""
    seen: set[int] = set()
    state: dict[str, Tensor] = family.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def sampling_weights(family: Family, ema: Ema) -> dict[str, Tensor]:
    """The family's state dict with the first EMA track in place of what was trained; whole on every rank."""
    averaged = ema.by_parameter()
    state: dict[str, Tensor] = family.state_dict(keep_vars=True)
    return {name: whole(averaged.get(id(t), t).detach()).to(t.dtype) for name, t in state.items()}


def run_contents(config: RunConfig, source: Source, trainer: Trainer, log_bytes: int) -> Contents:
    """A checkpoint of everything in `trainer`, in the tensors themselves. All ranks call this together."""
    # A bad step that has not been read yet must not become a checkpoint.
    trainer.settle()
    state, world = trainer.state, trainer.world
    header = WeightsHeader(
        config=plain_config(config),
        classes=list(source.classes),
        phase=state.phase,
        step=state.step,
        videos_seen=state.videos_seen,
        ema=trainer.ema.first,
        store_fingerprint=source.fingerprint,
        base_sha256=state.base_sha256,
        fps=source.fps,
    )
    record = {
        "state": asdict(state),
        "ema_videos": trainer.ema.videos,
        "log_bytes": log_bytes,
        "config": header.config,
        "store_fingerprint": source.fingerprint,
        "environment": environment(world),
    }
    tensors = run_tensors(trainer)
    shapes = {name: list(t.shape) for name, t in tensors.items()}
    weights = sampling_weights(trainer.family, trainer.ema)
    return Contents(state.total_step, own_share(tensors, world), shapes, weights if world.main else {}, header, record)


def environment(world: World) -> dict[str, Any]:
    """What exact resume depends on besides the checkpoint: number of threads, torch, ranks, device."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "world_size": world.size,
        "device": world.device.type,
    }


def restored_state(checkpoint: Checkpoint | None) -> TrainState:
    """The counters of `checkpoint`, or those of a new run."""
    if checkpoint is None:
        return TrainState()
    raw = dict(checkpoint.record["state"])
    meter = {name: (float(total), int(count)) for name, (total, count) in raw.pop("meter").items()}
    return TrainState(**raw, meter=meter)


def check_resumable(checkpoint: Checkpoint, config: RunConfig, source: Source, world: World) -> None:
    """Refuse a config that the checkpoint cannot serve, and say what else differs from when it was written.

    Raises IncompatibleCheckpoint listing the keys that may not change.
    """
    old, new = flat(checkpoint.record["config"]), flat(plain_config(config))
    # A key that the checkpoint's version did not know yet has no old value to differ from.
    changed = sorted(key for key in old if old[key] != new.get(key))
    frozen = [key for key in changed if _below(key, FROZEN) and not _below(key, FREE)]
    if frozen:
        listed = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in frozen)
        raise IncompatibleCheckpoint(
            f"{checkpoint.path} belongs to another configuration: {listed}",
            hint="start a new run with --out, or give the settings of the old one (config.yaml in its directory)",
        )
    for key in changed:
        effect = f": {REORDERING[key]}" if key in REORDERING else ""
        logger.warning("%s changed from %r to %r%s", key, old.get(key), new.get(key), effect)
    if checkpoint.record["store_fingerprint"] != source.fingerprint:
        logger.warning("the store is not the one this run began with: the order of clips changes from here on")
    before, now = checkpoint.record["environment"], environment(world)
    for key in sorted(k for k in now if before.get(k) != now[k]):
        logger.warning(
            "%s changed from %s to %s: the run continues, and not bit for bit", key, before.get(key), now[key]
        )


def _below(key: str, roots: Sequence[str]) -> bool:
    """Whether `key` is one of `roots` or lies below one."""
    return any(key == root or key.startswith(root + ".") for root in roots)
