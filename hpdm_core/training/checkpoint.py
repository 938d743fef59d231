"""Checkpoints: written whole or not at all, checked before they are trusted, never pickled.

    RUN/checkpoints/step_00000100/
        weights.safetensors   what sampling loads: the first EMA track, with the config inside
        state/                raw weights, optimiser moments, EMA tracks: torch.distributed.checkpoint in its
                              safetensors form, so any number of ranks can write and any other can read
        state.json            counters, config, environment, and the manifest (size and hash of every file)

A checkpoint is built under a name ending in .tmp, synced, and renamed; what has the final name is complete.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
    _gen_file_name,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from hpdm_core.errors import CheckpointError, IncompatibleCheckpoint
from hpdm_core.families.weights import (
    CHECKPOINTS,
    STATE_FILE,
    WEIGHTS_FILE,
    WeightsHeader,
    file_damage,
    finished_checkpoints,
    manifest_digest,
    newest_whole,
    save_weights,
)
from hpdm_core.nn.tensor_files import save_safetensors
from hpdm_core.training.distributed import World

# One process without a process group is what we mean. For good, because a thread must not switch filters for others.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninit")

STATE_FOLDER = "state"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose manifest holds. `record` is its state.json."""

    path: Path
    record: dict[str, Any]

    def read_into(self, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors` in place; IncompatibleCheckpoint if the file's tensors are not exactly these."""
        expected = {name: list(t.shape) for name, t in tensors.items()}
        stored = self.record["tensors"]
        if expected != stored:
            wrong = sorted(n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n))
            raise IncompatibleCheckpoint(
                f"{self.path} does not fit this model, optimiser or EMA: {len(wrong)} tensors differ, "
                f"the first are {', '.join(wrong[:3])}",
                hint="train with the config in the run directory, or start a new run with --out",
            )
        self.read_some(tensors)

    def read_some(self, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors` in place; the file holds them in these shapes, and maybe others besides."""
        reader = HuggingFaceStorageReader(str(self.path / STATE_FOLDER))
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())


@dataclass(frozen=True)
class Contents:
    """What goes into one checkpoint. `shapes` names every tensor; a rank holds `tensors` and `weights` to write."""

    step: int
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, list[int]]
    weights: Mapping[str, Tensor]
    header: WeightsHeader
    record: Mapping[str, Any]

    def with_tensors(self, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Contents:
        """The same with copies."""
        return replace(self, tensors=tensors, weights=weights)


def own_share(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this rank writes: its shards of what is sharded, and of what all ranks hold every world-size-th tensor."""
    by_size = sorted(tensors, key=lambda name: (-tensors[name].numel(), name))
    mine = set(by_size[world.rank :: world.size])
    return {name: t.detach() for name, t in tensors.items() if isinstance(t, DTensor) or name in mine}


def save_checkpoint(run: Path, contents: Contents, world: World) -> Path:
    """Write a checkpoint of `run` and return its folder. All ranks call this together.

    Raises CheckpointError when the disk is full or not writable; older checkpoints stay as they are.
    """
    final = run / CHECKPOINTS / f"step_{contents.step:08d}"
    partial = final.with_name(final.name + ".tmp")
    with writing(final), _cleared_on_failure(partial, world):
        if world.main:
            _remove(partial)
            (partial / STATE_FOLDER).mkdir(parents=True)
        world.barrier(world.writers)
        contiguous = {name: t.contiguous() for name, t in contents.tensors.items()}
        writer = _StateWriter(str(partial / STATE_FOLDER), save_distributed=True)
        dcp.save(contiguous, storage_writer=writer, process_group=world.writers, no_dist=world.size == 1)
        # Every rank's files are there: the coordinator of `save` has heard of them all.
        if world.main:
            save_weights(partial / WEIGHTS_FILE, contents.weights, contents.header)
            _seal(partial, {**contents.record, "tensors": contents.shapes})
            _remove(final)
            partial.rename(final)
            _sync_folder(final.parent)
        world.barrier(world.writers)
    return final


class _StateWriter(HuggingFaceStorageWriter):
    """Writes what its base class writes, one file a rank.

    The base class builds each file in memory first and holds Python's lock all the while (measured: 1.4 s for
    256 MiB); training must go on meanwhile.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's items; its coordinator needs to know nothing more of them."""
        tensors, offsets = {}, {}
        for item in plan.items:
            data = planner.resolve_data(item)
            if isinstance(data, Tensor) and item.tensor_data is not None:
                tensors[item.index.fqn] = data.detach().to("cpu").contiguous()
                offsets[item.index.fqn] = {SAVED_OFFSETS_KEY: item.tensor_data.chunk.offsets}
        if tensors:
            about = {CUSTOM_METADATA_KEY: json.dumps(offsets), DCP_VERSION_KEY: str(HF_DCP_VERSION)}
            name = _gen_file_name(1, 1, plan.storage_data["shard_index"])
            save_safetensors(Path(self.path) / name, tensors, {**about, FORMAT_KEY: FORMAT_VALUE})
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done


def newest_valid(run: Path) -> Checkpoint | None:
    """The newest checkpoint of `run` whose manifest holds; each damaged one is skipped with a warning.

    None where there is no checkpoint at all. Raises IncompatibleCheckpoint where there are some and all are damaged:
    starting anew over them would lose what can still be saved.
    """
    return newest_whole(run, _inspect, "checkpoint", "start anew with another --out, or remove that folder")


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; IncompatibleCheckpoint if its manifest does not hold."""
    checkpoint, damage = _inspect(folder)
    if damage:
        raise IncompatibleCheckpoint(f"the checkpoint {folder} is damaged: {damage}", hint="take an older one")
    return checkpoint


def prune(run: Path, keep: int, step: int, best: int = 0) -> None:
    """Delete all but checkpoint `best` and the newest `keep` of `run` up to `step`, and what interrupted writes left.

    What is newer than `step` is damaged, for the run went back behind it: it neither counts nor goes.
    """
    root = run / CHECKPOINTS
    finished = [folder for folder in finished_checkpoints(run) if folder.name <= f"step_{step:08d}"]
    for folder in finished[: max(len(finished) - keep, 0)]:
        if folder.name == f"step_{best:08d}":
            continue
        # Renamed first: a deletion that is interrupted must not look like a damaged checkpoint.
        doomed = folder.with_name(folder.name + ".tmp")
        _remove(doomed)
        folder.rename(doomed)
    for leftover in root.glob("step_*.tmp"):
        _remove(leftover)


def _seal(folder: Path, record: dict[str, Any]) -> None:
    """Sync every file of `folder` and write state.json with the manifest over them."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "blake2b": manifest_digest(path)}
    text = json.dumps({"format": FORMAT, **record, "files": files}, indent=1)
    with (folder / STATE_FILE).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    for path in (folder / STATE_FOLDER, folder):
        _sync_folder(path)


def _inspect(folder: Path) -> tuple[Checkpoint, str]:
    """The checkpoint in `folder` and what is wrong with it, in words; empty if nothing is."""
    try:
        record = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return Checkpoint(folder, record), _damage(folder, record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Checkpoint(folder, {}), f"its {STATE_FILE} is unreadable ({error})"


def _damage(folder: Path, record: dict[str, Any]) -> str:
    """What is wrong with a checkpoint, in words; empty if its manifest holds."""
    if record["format"] != FORMAT:
        return f"it has format {record['format']}, this version reads format {FORMAT}"
    if WEIGHTS_FILE not in record["files"]:
        return f"its manifest lacks {WEIGHTS_FILE}"
    for name, entry in record["files"].items():
        if damage := file_damage(folder, name, entry):
            return damage
    return ""


def _sync_folder(path: Path) -> None:
    """Make a rename or a new entry in `path` durable, where the system can (Windows cannot)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _cleared_on_failure(partial: Path, world: World) -> Iterator[None]:
    """Give back the space of a checkpoint that could not be finished."""
    try:
        yield
    except BaseException:
        if world.main:
            shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the many ways in which a full or failing disk shows itself into one CheckpointError about `path`."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        text = str(error).strip() or type(error).__name__
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in text
        reason = "no space left on the disk" if full else text.splitlines()[-1]
        remedy = "make room (or lower train.keep_checkpoints)" if full else "see to the folder's permissions"
        raise CheckpointError(
            f"cannot write {path}: {reason}; the checkpoints that exist are untouched",
            hint=f"{remedy}, then run the same command again",
        ) from error
