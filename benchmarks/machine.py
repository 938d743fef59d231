"""The facts that stand beside every measured number: machine, software, commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from hpdm_core.data.shard import write_text
from hpdm_core.nn.devices import pick_device


def machine_facts(device: str | None = None) -> dict[str, Any]:
    """Device, software versions and the commit of this checkout (`unknown` outside a repository).

    device: what is measured, as the commands name it; without it, and as "auto", the GPU, if there is one.
    """
    measured = pick_device(device)
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=False
    )
    return {
        "device": torch.cuda.get_device_name(measured) if measured.type == "cuda" else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": os.environ.get("HPDM_COMMIT") or git.stdout.strip() or "unknown",
    }


def write_json(path: Path | None, rows: list[dict[str, Any]], device: str | None = None, **extra: Any) -> None:
    """Write rows and the facts of the machine that measured them on `device`, whole or not at all; no path, no file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"machine": machine_facts(device), **extra, "rows": rows}, indent=1) + "\n")


def stored_rows(path: Path | None, device: str | None = None, **extra: Any) -> list[dict[str, Any]]:
    """The rows that `write_json` left at `path` for this commit, machine, device and `extra`.

    Others do not count, and move out of the way.
    """
    if path is None or not path.is_file():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    rows = stored.pop("rows")
    if stored == {"machine": machine_facts(device), **extra}:
        return rows
    kept = path.with_suffix(".old.json")
    path.replace(kept)
    print(
        f"{path}: its {len(rows)} rows are of another commit, machine or model, and lie in {kept.name} now", flush=True
    )
    return []
