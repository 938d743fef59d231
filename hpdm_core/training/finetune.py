"""Fine-tuning a trained model to more resolution: what would happen, and doing it.

The paper's recipe for text-to-video (HPDM §4): take a generator of the coarsest level, add the finer levels,
train all of them jointly for a few per cent of the base's steps. What is reused is the family's business
(`Family.grow_from`); the rest is the ordinary training loop, so the same call again continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpdm_core.config.load import parse_config, plain_config
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.store import VideoStore
from hpdm_core.errors import StoreMismatch
from hpdm_core.families.base import Family, Growth
from hpdm_core.families.registry import family_sections, load_run_config
from hpdm_core.sampling.stage import Outline
from hpdm_core.training.optim import trained_parameters
from hpdm_core.training.origin import Origin, open_origin
from hpdm_core.training.plan import TrainPlan, plan_training, sampling_outline
from hpdm_core.training.run import TrainResult, train
from hpdm_core.training.source import class_condition, find_store, weightless_family


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tuning before it starts.

    before: what one video of the base takes; after that of the grown model is `training.sampling`.
    moments, trained: parameters whose optimiser state comes from the base, and parameters in all.
    """

    origin: Origin
    training: TrainPlan
    growth: Growth
    before: Outline
    moments: int
    trained: int


def finetune_config(
    origin: Origin,
    preset: str | Path,
    overrides: Sequence[str] = (),
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> RunConfig:
    """The config of `preset` with `overrides` for videos of `frames` and `size`, classes and vocabulary of `origin`.

    Raises ConfigError for an impossible size, naming the nearest possible one.
    """
    raw = plain_config(load_run_config(preset, overrides, frames=frames, size=size))
    known = plain_config(origin.config)["model"].get("condition")
    if known is not None and "condition" in raw["model"]:
        raw["model"]["condition"] = _filled(raw["model"]["condition"], known)
    return parse_config(raw, family_sections, where=str(preset))


def plan_finetuning(origin: Origin, config: RunConfig, store: Path | None) -> FinetunePlan:
    """What fine-tuning `origin` into `config` reuses, adds and costs, without memory for a weight.

    Raises ConfigError, IncompatibleCheckpoint, StoreMismatch or DataError for what would stop it.
    """
    family = weightless_family(config)
    growth = origin.grow(family)
    if store is not None:
        _check_classes(origin, VideoStore.open(store), config)
    sizes = _trained(family)
    return FinetunePlan(
        origin=origin,
        training=plan_training(config, store),
        growth=growth,
        before=sampling_outline(origin.config, weightless_family(origin.config)),
        moments=sum(sizes[name][1] for name in origin.moments({name: shape for name, (shape, _) in sizes.items()})),
        trained=sum(count for _, count in sizes.values()),
    )


def finetune(
    origin: Origin | str | Path,
    config: RunConfig,
    store_path: str | Path | None = None,
    out: str | Path = "runs/finetune",
    *,
    time_limit: float | None = None,
    device: str | None = None,
) -> TrainResult:
    """Grow `origin` into `config`'s model and train all levels jointly; see `train` for the rest.

    The same call again continues. Raises what `plan_finetuning` and `train` raise, and
    IncompatibleCheckpoint if the run at `out` began with other weights.
    """
    origin = origin if isinstance(origin, Origin) else open_origin(origin)
    store = find_store(config, Path(store_path) if store_path else None)
    _check_classes(origin, VideoStore.open(store), config)
    return train(config, store, out, time_limit=time_limit, device=device, origin=origin)


def _filled(tree: Any, known: Any) -> Any:
    """`tree` with `known`'s values where it has null: what training took from the base's store."""
    if tree is None:
        return known
    if not isinstance(tree, dict) or not isinstance(known, dict):
        return tree
    if any(tree.get(key) != known.get(key) for key in ("kind", "mode")):
        return tree  # another kind of condition: growing will say so
    return {key: _filled(value, known.get(key)) for key, value in tree.items()}


def _trained(family: Family) -> dict[str, tuple[list[int], int]]:
    """Of every trained parameter, the name of its first moment in a checkpoint, its shape and size."""
    found: dict[str, tuple[list[int], int]] = {}
    for role in family.phases()[0].roles:
        for name, p in trained_parameters(family, role).items():
            found[f"optim/{role.name}/{name}/exp_avg"] = (list(p.shape), p.numel())
    return found


def _check_classes(origin: Origin, store: VideoStore, config: RunConfig) -> None:
    """StoreMismatch if the store numbers its classes otherwise than the base was taught."""
    known = origin.header.classes
    if class_condition(config) is not None and known and list(store.classes) != known:
        raise StoreMismatch(
            f"the store's classes are not the base's: {', '.join(store.classes[:3])}, … instead of "
            f"{', '.join(known[:3])}, …",
            hint="fine-tune on a store with the same class folders",
        )
