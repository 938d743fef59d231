"""Weights files: safetensors with the whole config inside, and how to find one in a run directory.

A weights file is all that sampling needs. Its metadata key `hpdm` holds a JSON header: format, resolved
config, class names, step, videos seen, EMA track, store fingerprint. Nothing is ever unpickled.

A small trained model may come with the package, for those who have none yet: `shipped.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hpdm_core.config.load import parse_config, plain_config
from hpdm_core.config.schema import RunConfig
from hpdm_core.errors import ConfigError, IncompatibleCheckpoint, NoCheckpoint
from hpdm_core.families import shipped
from hpdm_core.families.base import Family
from hpdm_core.families.registry import build_family, family_class, family_sections
from hpdm_core.nn.tensor_files import write_tensors

logger = logging.getLogger(__name__)

FORMAT = 1
WEIGHTS_FILE = "weights.safetensors"
CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"

T = TypeVar("T")


@dataclass(frozen=True)
class WeightsHeader:
    """What a weights file says of itself. `config` is the resolved RunConfig as plain data.

    base_sha256: hash of the weights file that a fine-tuned model began with; empty for one trained from scratch.
    fps: frames per second of the training clips as the model saw them; None where no clip says it (and in older files).
    """

    config: dict[str, Any]
    classes: list[str] = field(default_factory=list)
    phase: str = ""
    step: int = 0
    videos_seen: int = 0
    ema: str = ""
    store_fingerprint: str = ""
    base_sha256: str = ""
    fps: float | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class LoadedModel:
    """A family with trained weights, ready to sample. `sha256` is the hash of the file it came from."""

    family: Family
    config: RunConfig
    header: WeightsHeader
    path: Path
    sha256: str


def save_weights(path: Path, tensors: Mapping[str, Tensor], header: WeightsHeader) -> None:
    """Write a weights file atomically: a reader sees the old file or the new one, never half. Raises OSError."""
    write_tensors(path, tensors, {"hpdm": json.dumps(asdict(header), sort_keys=True)})


def read_header(path: Path) -> WeightsHeader:
    """The header of a weights file, without reading its tensors."""
    metadata = _metadata(path)
    if "hpdm" not in metadata:
        raise IncompatibleCheckpoint(
            f"{path} has no hpdm header", hint="give a weights file or run directory written by `hpdm train`"
        )
    raw = json.loads(metadata["hpdm"])
    if raw.get("format") != FORMAT:
        raise IncompatibleCheckpoint(
            f"{path} has format {raw.get('format')}; this version reads format {FORMAT}",
            hint="use the hpdm version that wrote it",
        )
    unknown = sorted(raw.keys() - {known.name for known in fields(WeightsHeader)})
    if unknown:
        raise IncompatibleCheckpoint(
            f"{path} says things that this version does not know: {', '.join(unknown)}",
            hint="use the hpdm version that wrote it",
        )
    return WeightsHeader(**raw)


def export_weights(
    source: Path, target: Path, dtype: torch.dtype, sample: Mapping[str, Any] | None = None
) -> WeightsHeader:
    """Write the model at `source` as one file of `dtype`; returns its header.

    source: what `find_weights` takes. sample: keys of the sample section to change, which is how the file samples
    where nothing else is asked; the rest of the header stays. Raises NoCheckpoint and IncompatibleCheckpoint as
    `load_model` does, and ConfigError for a wrong key or value, for a list with more entries than sampling has stages,
    and where `target` is the source itself, whose numbers would be lost.
    """
    file = find_weights(source)
    if target.exists() and target.samefile(file):
        raise ConfigError(f"{target} is the model that would be written", hint="choose another --out")
    header = _sampling(read_header(file), sample or {})
    save_weights(target, {name: _as(t, dtype) for name, t in load_file(file).items()}, header)
    return header


def _sampling(header: WeightsHeader, changes: Mapping[str, Any]) -> WeightsHeader:
    """`header` with `changes` to the sample section of its config."""
    if not changes:
        return header
    changed = {**header.config, "sample": {**header.config["sample"], **changes}}
    config = parse_config(changed, family_sections, where="sample options")
    family = family_class(config.family)
    for key, unread in family.unread_entries(config.model, config.sample).items():
        if key in changes:  # a preset's own lists may be those of the larger model that this one is grown into
            raise ConfigError(
                f"sample options: key sample.{key}: {len(changes[key])} entries, of which this model's sampling reads "
                f"{family.most_stages(config.model)}, one a stage",
                hint=f"leave {', '.join(map(str, unread))} away",
            )
    return replace(header, config=plain_config(config))


def finished_checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first; one that is being written does not count."""
    return sorted(folder for folder in (run / CHECKPOINTS).glob("step_*") if folder.suffix != ".tmp")


def checkpoint_dirs(run: Path) -> list[Path]:
    """Those of `finished_checkpoints` that hold weights."""
    return [folder for folder in finished_checkpoints(run) if (folder / WEIGHTS_FILE).is_file()]


def find_weights(path: Path) -> Path:
    """The weights file meant by a file, a checkpoint directory or a run directory (its newest that is whole).

    Each damaged checkpoint of a run is skipped with a warning. Raises NoCheckpoint where there is none, and
    IncompatibleCheckpoint where all are damaged.
    """
    if path.is_file():
        return path
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    hint = "train anew with another --out, or give a weights file"
    newest = newest_whole(path, lambda folder: (folder / WEIGHTS_FILE, _weights_damage(folder)), "weights", hint)
    if newest is None:
        raise NoCheckpoint(f"no checkpoint at {path}", hint="train one first: hpdm train --preset NAME --out RUN")
    return newest


def newest_whole(run: Path, read: Callable[[Path], tuple[T, str]], what: str, hint: str) -> T | None:
    """What `read` finds in the newest checkpoint of `run` that it calls whole; None where there is none.

    read: a checkpoint's folder to what it holds and what is wrong with it, in words; empty if nothing is. Each
    damaged checkpoint is skipped with a warning. Raises IncompatibleCheckpoint, which speaks of `what` and gives
    `hint`, where there are some and all are damaged.
    """
    damages = []
    for folder in reversed(finished_checkpoints(run)):
        found, damage = read(folder)
        if not damage:
            return found
        logger.warning("skipping the damaged checkpoint %s: %s", folder, damage)
        damages.append(f"{folder.name}: {damage}")
    if damages:
        raise IncompatibleCheckpoint(f"no {what} in {run / CHECKPOINTS} can be read ({'; '.join(damages)})", hint=hint)
    return None


def file_damage(folder: Path, name: str, entry: Mapping[str, Any]) -> str:
    """How file `name` of a checkpoint differs from its `entry` in the manifest, in words; empty if it does not."""
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
    if manifest_digest(path) != entry["blake2b"]:
        return f"the contents of {name} have changed"
    return ""


def manifest_digest(path: Path) -> str:
    """The hash of a file in a checkpoint's manifest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def load_model(path: str | Path | None = None, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a trained model from a weights file, checkpoint directory or run directory; None: the model in the box.

    16-bit files become fp32. Raises NoCheckpoint where there is no model and IncompatibleCheckpoint where its
    tensors do not fit.
    """
    if path is None and not shipped.has_shipped_model():
        raise NoCheckpoint(
            "no model was given, and this version ships none",
            hint="train one in minutes with `hpdm demo`, then: hpdm sample --ckpt demo/run",
        )
    file = find_weights(Path(path) if path is not None else shipped.SHIPPED_MODEL)
    header = read_header(file)
    config = parse_config(header.config, family_sections, where=str(file))
    with torch.device("meta"):
        family = build_family(config)
    tensors = {name: _as(t, torch.float32) for name, t in load_file(file, device=str(device)).items()}
    missing, unexpected = family.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:
        raise IncompatibleCheckpoint(
            f"{file} does not fit its own config: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return LoadedModel(family.eval().requires_grad_(False), config, header, file, digest)


def _weights_damage(folder: Path) -> str:
    """What is wrong with a checkpoint's weights, in words; empty if nothing is. A copy may lack the manifest."""
    try:
        if not (folder / STATE_FILE).exists():
            _metadata(folder / WEIGHTS_FILE)
            return ""
        manifest = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["files"]
        return file_damage(folder, WEIGHTS_FILE, manifest[WEIGHTS_FILE])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {STATE_FILE} is unreadable ({error})"
    except IncompatibleCheckpoint:
        return f"{WEIGHTS_FILE} is missing or no whole safetensors file"


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; IncompatibleCheckpoint if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise IncompatibleCheckpoint(f"{path} is not a readable safetensors file: {error}") from error


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` if it holds real numbers; indices stay what they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
