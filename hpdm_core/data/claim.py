"""Who may write a store: its plan, which guards against other settings, and a lock on it.

One process prepares a whole store, or many processes prepare shares of it side by side.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from hpdm_core.data.clip import Recipe
from hpdm_core.data.disk import writing_to
from hpdm_core.data.shard import SHARDS, Record, read_json, write_text_once
from hpdm_core.data.sources.base import Scan
from hpdm_core.data.store import PLAN, SCHEMA
from hpdm_core.errors import ConfigError

logger = logging.getLogger(__name__)


def store_plan(scan: Scan, recipe: Recipe) -> Record:
    """What decides the bytes of the store, as plain data."""
    names = [[c.id, c.label, c.captions, c.group, len(c.paths), c.fps] for c in scan.clips]
    specs = [asdict(c.synthetic) for c in scan.clips if c.synthetic]
    digest = hashlib.sha256(json.dumps([names, specs, scan.classes]).encode()).hexdigest()
    plain = json.loads(json.dumps(asdict(recipe)))
    return {"schema": SCHEMA, "recipe": plain, "num_clips": len(scan.clips), "clips_sha256": digest}


@dataclass(frozen=True)
class Claim:
    """A store that this process may write."""

    out: Path
    file: IO[bytes]

    def await_others(self) -> None:
        """Wait until no other process prepares a share of the store, and keep new ones out."""
        _lock(self.file.fileno(), self.out, shared=False, wait=True)


@contextmanager
def claimed(out: Path, plan: Record, *, shared: bool = False) -> Iterator[Claim]:
    """Hold the store for this process, or for one of several; refuse a folder that is not this plan's store."""
    with writing_to(out):
        _begin(out, plan)
        file = (out / PLAN).open("r+b")
    with file:
        _lock(file.fileno(), out, shared=shared, wait=False)
        yield Claim(out, file)


def _begin(out: Path, plan: Record) -> None:
    """Make the folder with its plan, or compare the plan that is there."""
    path = out / PLAN
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", hint="--out names a folder")
    if not path.is_file():
        # The jobs of an array begin at the same moment: what another of them has begun is no stranger's.
        if out.is_dir() and any(not f.name.startswith(PLAN) for f in out.iterdir()) and not path.is_file():
            raise ConfigError(f"{out} is not empty and holds no store", hint="give another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_text_once(path, json.dumps(plan, indent=1, sort_keys=True) + "\n")
    found = read_json(path)
    changed = [key for key in plan if found.get(key) != plan[key]]
    if changed:
        raise ConfigError(
            f"{out} was begun with other settings: {_difference(found, plan, changed[0])}",
            hint="give another --out, or delete that store first",
        )
    (out / SHARDS).mkdir(exist_ok=True)


def _difference(found: Record, plan: Record, key: str) -> str:
    if key == "clips_sha256":
        return "the list of clips has changed"
    if key != "recipe":
        return f"{key} was {found.get(key)}, is {plan[key]}"
    old, new = found.get(key, {}), plan[key]
    return ", ".join(f"{k} was {old.get(k)}, is {new[k]}" for k in new if old.get(k) != new[k])


def _lock(descriptor: int, out: Path, *, shared: bool, wait: bool) -> None:
    """One preparation of a whole store at a time, or several of its shares, where the system has file locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, mode)
    except BlockingIOError:
        raise ConfigError(f"another process is preparing {out}", hint="wait for it, or stop it") from None
    except OSError:  # a file system without locks
        logger.warning("%s: this file system has no locks; do not prepare one store twice at once", out)
