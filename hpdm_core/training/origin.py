"""The trained model that a fine-tuning begins with: its weights, its optimiser state, its identity."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hpdm_core.config.load import parse_config
from hpdm_core.config.schema import RunConfig
from hpdm_core.errors import IncompatibleCheckpoint
from hpdm_core.families.base import Family, Growth
from hpdm_core.families.registry import family_sections
from hpdm_core.families.weights import STATE_FILE, WEIGHTS_FILE, WeightsHeader, find_weights, read_header
from hpdm_core.training.checkpoint import Checkpoint, newest_valid, open_checkpoint
from hpdm_core.training.state import TrainState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """A weights file as the start of another run; with its checkpoint, optimiser state comes along."""

    file: Path
    sha256: str
    header: WeightsHeader
    config: RunConfig
    checkpoint: Checkpoint | None

    def grow(self, family: Family) -> Growth:
        """Fill a freshly built larger family with these weights; one on meta only learns how it would go."""
        if family.name != self.config.family:
            raise IncompatibleCheckpoint(
                f"{self.file} holds a {self.config.family} model, and the preset is {family.name}",
                hint="take a preset of the base's family",
            )
        weightless = next(family.parameters()).is_meta
        return family.grow_from(_shapes(self.file) if weightless else load_file(self.file), self.config.model)

    def moments(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Those of the new run's optimiser tensors (name to shape) that the base's checkpoint holds as well.

        A parameter keeps all of its tensors or none: a step count without moments would mislead the optimiser.
        """
        if self.checkpoint is None:
            return []
        stored = self.checkpoint.record["tensors"]
        changed = {name.rpartition("/")[0] for name, shape in shapes.items() if stored.get(name) != list(shape)}
        return [name for name in shapes if name.rpartition("/")[0] not in changed]

    def read_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the optimiser tensors that agree in name and shape, in place; the others stay as they are."""
        kept = self.moments({name: t.shape for name, t in tensors.items()})
        if self.checkpoint is not None and kept:
            self.checkpoint.read_some({name: tensors[name] for name in kept})
        logger.info("%d of %d optimiser tensors come from %s", len(kept), len(tensors), self.file)

    def check_same(self, state: TrainState, run: Path) -> None:
        """IncompatibleCheckpoint unless the run that `state` continues began with these very weights."""
        if state.base_sha256 == self.sha256:
            return
        began = f"was fine-tuned from other weights ({state.base_sha256[:12]})" if state.base_sha256 else "began anew"
        raise IncompatibleCheckpoint(
            f"the run at {run} {began}, not from {self.file} ({self.sha256[:12]})",
            hint="choose another --out, or give the weights it began with (a checkpoint directory will do)",
        )


def open_origin(path: str | Path) -> Origin:
    """The base at a run directory, checkpoint directory or weights file; a bare file has no optimiser state.

    Raises NoCheckpoint where there is none and IncompatibleCheckpoint where it cannot be read.
    """
    path = Path(path)
    checkpoint = None
    if (path / STATE_FILE).is_file():
        checkpoint = open_checkpoint(path)
    elif path.is_dir() and not (path / WEIGHTS_FILE).is_file():
        checkpoint = newest_valid(path)
    file = find_weights(checkpoint.path if checkpoint else path)
    header = read_header(file)
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    config = parse_config(header.config, family_sections, where=str(file))
    return Origin(file, digest, header, config, checkpoint)


def _shapes(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file without their contents."""
    with safe_open(file, framework="pt") as tensors:
        return {name: torch.empty(tensors.get_slice(name).get_shape(), device="meta") for name in tensors.keys()}  # noqa: SIM118
