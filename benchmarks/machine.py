"""The facts that stand beside every measured number: machine, software, commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def machine_facts(device: str | None = None) -> dict[str, Any]:
    """Device, software versions and the commit of this checkout (`unknown` outside a repository).

    device: what is measured, "cuda" or "cpu"; without it the GPU, if there is one.
    """
    on_gpu = torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": os.environ.get("HPDM_COMMIT") or git.stdout.strip() or "unknown",
    }


def write_json(path: Path | None, rows: list[dict[str, Any]], device: str | None = None, **extra: Any) -> None:
    """Write rows and the facts of the machine that measured them on `device`; no path, no file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine_facts(device), **extra, "rows": rows}, indent=1) + "\n")


def stored_rows(path: Path | None, device: str | None = None, **extra: Any) -> list[dict[str, Any]]:
    """The rows that `write_json` left at `path` for this commit, machine, device and `extra`; others do not count."""
    if path is None or not path.is_file():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    rows = stored.pop("rows")
    return rows if stored == {"machine": machine_facts(device), **extra} else []
