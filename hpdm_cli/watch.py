"""`hpdm eval-fvd --watch RUN`: score each checkpoint as it appears, remember the scores, keep the best."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpdm_cli import console
from hpdm_core.errors import NoCheckpoint

SCORES = "scores"
BEST = "best.json"
BEST_WEIGHTS = "best.safetensors"
POLL_SECONDS = 20.0


def watch_run(
    run: Path,
    score: Callable[[str], dict[str, Any]],
    write: Callable[[Path, dict[str, Any]], None],
    *,
    keep_going: Callable[[], bool] = lambda: True,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Score every finished checkpoint of `run` that has no score yet, then wait for the next; Ctrl-C ends it.

    Writes `scores/<checkpoint>.json` into the run, and copies the weights with the lowest FVD to
    `scores/best.safetensors`, since training deletes old checkpoints. Scores that exist are not made again.
    """
    from hpdm_core.families.weights import checkpoint_dirs

    if not run.is_dir():
        raise NoCheckpoint(f"no run at {run}", hint="start it first: hpdm train --preset NAME --out RUN")
    while True:
        for checkpoint in checkpoint_dirs(run):
            target = run / SCORES / f"{checkpoint.name}.json"
            if target.exists():
                continue
            try:
                result = score(str(checkpoint))
            except (NoCheckpoint, FileNotFoundError):
                if checkpoint.exists():
                    raise
                continue  # training has removed it meanwhile
            write(target, result)
            _keep_best(run, checkpoint, result, write)
            values = " ".join(f"{m['label']} {m['value']:.6g}" for m in result["metrics"].values())
            console.print_result(f"{checkpoint.name} {values}")
        if not keep_going():
            return
        sleep(POLL_SECONDS)


def _keep_best(
    run: Path, checkpoint: Path, result: dict[str, Any], write: Callable[[Path, dict[str, Any]], None]
) -> None:
    """Copy the weights if their FVD is the lowest of this protocol so far."""
    if "fvd" not in result["metrics"]:
        return
    file = run / SCORES / BEST
    best = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    value = result["metrics"]["fvd"]["value"]
    same = best is not None and best["protocol_hash"] == result["protocol_hash"]
    if best is not None and same and best["fvd"] <= value:
        return
    source = checkpoint / "weights.safetensors"
    if not source.is_file():
        return
    partial = run / SCORES / f"{BEST_WEIGHTS}.tmp"
    shutil.copyfile(source, partial)
    partial.replace(run / SCORES / BEST_WEIGHTS)
    write(file, {"checkpoint": checkpoint.name, "fvd": value, "protocol_hash": result["protocol_hash"]})
