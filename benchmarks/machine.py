"""The facts that stand beside every measured number: machine, software, commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def machine_facts() -> dict[str, Any]:
    """Device, software versions and the commit of this checkout (`unknown` outside a repository)."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": os.environ.get("HPDM_COMMIT") or git.stdout.strip() or "unknown",
    }


def write_json(path: Path | None, rows: list[dict[str, Any]], **extra: Any) -> None:
    """Write rows and machine facts; no path, no file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine_facts(), **extra, "rows": rows}, indent=1) + "\n")
