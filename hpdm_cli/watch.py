"""`hpdm eval-fvd --watch RUN`: score each checkpoint as it appears, remember the scores, keep the best."""

from __future__ import annotations

import json
import os
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

Write = Callable[[Path, dict[str, Any]], None]


def watch_run(
    run: Path,
    key: str,
    score: Callable[[str], dict[str, Any]],
    write: Write,
    *,
    finished: Callable[[Path, Path], bool] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Score every checkpoint of `run` that has no score yet, wait for the next, and end when the run is finished.

    key: a name for how it is measured. Writes `scores/<key>/<checkpoint>.json` into the run, and keeps the weights with
    the lowest FVD as `scores/<key>/best.safetensors`. Training deletes old checkpoints, so each is held by a link
    while it is scored; one that is gone before that is passed over. Scores that exist are not made again.
    """
    from hpdm_core.families.weights import checkpoint_dirs

    if not run.is_dir():
        raise NoCheckpoint(f"no run at {run}", hint="start it first: hpdm train --preset NAME --out RUN")
    is_finished = finished or run_is_finished
    folder = run / SCORES / key
    while True:
        found = checkpoint_dirs(run)
        ended = bool(found) and is_finished(run, found[-1])
        for checkpoint in found:
            target = folder / f"{checkpoint.name}.json"
            if target.exists():
                continue
            held = _hold(checkpoint / "weights.safetensors", folder / f"{checkpoint.name}.safetensors")
            if held is None:
                continue  # training has removed it meanwhile
            try:
                result = score(str(held))
                result.setdefault("fake", {})["path"] = str(checkpoint)
                write(target, result)
                _keep_best(folder, checkpoint.name, held, result, write)
            finally:
                held.unlink(missing_ok=True)
            values = " ".join(f"{m['label']} {m['value']:.6g}" for m in result["metrics"].values())
            console.print_result(f"{checkpoint.name} {values}")
        if ended:
            return
        sleep(POLL_SECONDS)


def run_is_finished(run: Path, newest: Path) -> bool:
    """Whether `newest` is the checkpoint that ends the run: its last phase, complete."""
    from hpdm_core.families.registry import load_run_config
    from hpdm_core.families.weights import STATE_FILE
    from hpdm_core.training.run import CONFIG_FILE
    from hpdm_core.training.source import weightless_family

    try:
        state = json.loads((newest / STATE_FILE).read_text(encoding="utf-8"))["state"]
    except FileNotFoundError:
        return False  # removed meanwhile: there is a newer one
    if not state["finished"]:
        return False
    return state["phase"] == weightless_family(load_run_config(run / CONFIG_FILE)).phases()[-1].name


def _hold(weights: Path, held: Path) -> Path | None:
    """A second name for a weights file, or a copy where the disk has no links; None where the file is gone."""
    held.parent.mkdir(parents=True, exist_ok=True)
    held.unlink(missing_ok=True)
    for take in (os.link, shutil.copyfile):
        try:
            take(weights, held)
        except FileNotFoundError:
            return None
        except OSError:
            if take is shutil.copyfile:
                raise
        else:
            break
    return held


def _keep_best(folder: Path, name: str, held: Path, result: dict[str, Any], write: Write) -> None:
    """Keep the weights if their FVD is the lowest of this protocol so far."""
    if "fvd" not in result["metrics"]:
        return
    file = folder / BEST
    best = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    value = result["metrics"]["fvd"]["value"]
    same = best is not None and best["protocol_hash"] == result["protocol_hash"]
    if best is not None and same and best["fvd"] <= value:
        return
    held.replace(folder / BEST_WEIGHTS)
    write(file, {"checkpoint": name, "fvd": value, "protocol_hash": result["protocol_hash"]})
