"""Where training items come from: finding the store, checking it against the config, endless batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from hpdm_core.config.schema import ConditionSection, RunConfig
from hpdm_core.data.dataset import make_loader, to_device
from hpdm_core.data.store import VideoStore
from hpdm_core.data.window import Batch, ClipView
from hpdm_core.errors import DataError, StoreMismatch
from hpdm_core.families.base import Family
from hpdm_core.families.registry import build_family
from hpdm_core.training.distributed import World

PROCEDURAL = ("demo", "smoke")
"""Datasets of the presets that train on made-up clips."""


class Source(Protocol):
    """What the loop needs of a dataset. Item `position` of its stream never depends on ranks or batch sizes."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names by label."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the dataset."""
        ...

    def batches(
        self, view: ClipView, *, start: int, batch_size: int, micro_batch: int, world: World
    ) -> Iterator[Batch]:
        """This rank's micro-batches on its device, without end, from position `start` on.

        A global batch is `batch_size` consecutive positions, shared by the ranks.
        """
        ...


class StoreSource:
    """A prepared store as a source."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.store = VideoStore.open(path)
        self._config = config

    @property
    def classes(self) -> Sequence[str]:
        """Class names by label."""
        return self.store.classes

    @property
    def fingerprint(self) -> str:
        """The store's own fingerprint."""
        return self.store.fingerprint

    def batches(
        self, view: ClipView, *, start: int, batch_size: int, micro_batch: int, world: World
    ) -> Iterator[Batch]:
        """See `Source.batches`. Raises StoreMismatch or DataError if the store cannot serve `view`."""
        loader = make_loader(
            self.store,
            view,
            self._config.data,
            seed=self._config.train.seed,
            start_position=start,
            batch_size=batch_size,
            micro_batch=micro_batch,
            rank=world.rank,
            world_size=world.size,
            pin_memory=world.device.type == "cuda",
            need_labels=class_condition(self._config) is not None,
        )
        return (to_device(batch, world.device) for batch in loader)


def class_condition(config: RunConfig) -> ConditionSection | None:
    """The condition section of a model that is told the class; None for all others."""
    condition = getattr(config.model, "condition", None)
    return condition if isinstance(condition, ConditionSection) and condition.kind == "class" else None


def find_store(config: RunConfig, given: Path | None) -> Path:
    """The store to train on: `given`, the config's, $HPDM_DATA/<dataset> or data/<dataset>.

    Raises DataError with the `prepare-data` line to run if none of them exists.
    """
    explicit = given or (Path(config.data.store) if config.data.store else None)
    dataset = config.data.dataset
    candidates = [explicit] if explicit else []
    if not explicit:
        root = os.environ.get("HPDM_DATA")
        candidates = [Path(root) / dataset] if root else []
        candidates.append(Path("data") / dataset)
    for path in candidates:
        if (path / "store.json").is_file():
            return path
    places = " or ".join(str(path) for path in candidates)
    raise DataError(
        f"no prepared store for dataset {dataset!r}: there is none at {places}",
        hint=f"prepare one: {prepare_line(config, candidates[-1])}",
    )


def prepare_line(config: RunConfig, out: Path) -> str:
    """The command that prepares what `config` trains on."""
    family = weightless_family(config)
    view = family.view(family.phases()[-1].name)
    height, width = view.sizes[0]
    dataset = config.data.dataset
    if dataset.startswith("ucf101"):
        source = "path/to/UCF-101 --source ucf101"
    elif dataset in PROCEDURAL:
        source = f"--source synthetic --frames {view.frames}"
    else:
        source = "path/to/videos --source auto"
    return f"hpdm prepare-data {source} --size {height}x{width} --out {out}"


def weightless_family(config: RunConfig) -> Family:
    """The family of `config` without memory for its weights; an unknown number of classes counts as one."""
    condition = class_condition(config)
    if condition is not None and condition.num_classes is None:
        config = with_classes(config, ["any"])
    with torch.device("meta"):
        return build_family(config)


def with_classes(config: RunConfig, classes: Sequence[str]) -> RunConfig:
    """`config` with `model.condition.num_classes` taken from the store where it was left null.

    Raises StoreMismatch if the config conditions on classes and the store has none, or another number.
    """
    condition = class_condition(config)
    if condition is None:
        return config
    if not classes:
        raise StoreMismatch(
            "the model is conditioned on classes, and the store has no labels",
            hint="prepare the store from class folders, or set model.condition.kind=none",
        )
    if condition.num_classes is None:
        filled = condition.model_copy(update={"num_classes": len(classes)})
        model = config.model.model_copy(update={"condition": filled})
        return config.model_copy(update={"model": model})
    if condition.num_classes != len(classes):
        raise StoreMismatch(
            f"the model expects {condition.num_classes} classes, and the store has {len(classes)}",
            hint="leave model.condition.num_classes null to take the store's number",
        )
    return config
