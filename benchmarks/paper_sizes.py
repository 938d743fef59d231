"""Every paper-size preset on a GPU: one training step of each phase and role, parameters against the references.

    python -m benchmarks.paper_sizes --json results/paper_sizes.json       # all, minutes
    python -m benchmarks.paper_sizes --only pvdm-ucf101-s,pvdm-ucf101-l
    python -m benchmarks.paper_sizes --suite memory --json results/pvdm_memory.json
    python -m benchmarks.paper_sizes --toy                                 # the smoke presets on a CPU

A step is what the loop does (noise, loss, backward, clipping, optimiser) on random pixels, a micro-batch of the preset
at most `--batch` rows. Each row is a process of its own, so that its peak memory is its own and a row that does not
fit costs only itself. The memory suite is PVDM at 16x256x256 by batch; its paper trained its small model's
denoiser at batch 7, its large one's at 2, on a card of 24 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import write_json
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.window import Batch
from hpdm_core.families.base import Family, Phase, Role
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.nn.precision import matmul_precision
from hpdm_core.rng import BatchStreams
from hpdm_core.training.conditions import text_condition, with_placeholders
from hpdm_core.training.optim import RoleOptimizer
from hpdm_core.training.state import phase_micro
from hpdm_core.training.switches import apply_switches, computing

MILLION, GIB = 1e6, 2**30
SIZE_EMBEDDING = "without the embedding of the original image size, 1.31 M a level, which a store does not keep"

REFERENCES: dict[str, dict[str, tuple[float, str]]] = {
    "pvdm-ucf101-s": {"autoencoder": (62.06, ""), "denoiser": (132.2, "")},
    "pvdm-ucf101-l": {"autoencoder": (62.06, ""), "denoiser": (528.3, "")},
    "pvdm-sky": {"autoencoder": (62.06, ""), "denoiser": (528.3, "")},
    "mdm-text-256": {"denoiser": (461.4 + 15.25, SIZE_EMBEDDING)},
    "mdm-text-1024": {"denoiser": (461.4 + 15.25 + 4.36, SIZE_EMBEDDING)},
    "mdm-ucf101": {},
    "ucf101-s": {},
    "ucf101-m": {},
    "ucf101-l": {},
}
"""Preset to parts (None: the whole) and their millions in the released code, with what explains a difference.

The video model of matryoshka diffusion and the paper's HPDM were published without code.
"""

TOY = ("pvdm-smoke", "mdm-smoke", "mdm-text-smoke", "hpdm-smoke")


def random_batch(family: Family, phase: Phase, rows: int, config: RunConfig, device: str) -> Batch:
    """Random pixels in the shape of one micro-batch of `phase`, every row conditional; a frozen text tower's states."""
    view = family.view(phase.name)
    cuts = [view.cut(0, np.random.default_rng(row)) for row in range(rows)]
    videos = {
        name: torch.rand(rows, 3, w.frames, w.height, w.width, device=device) * 2 - 1
        for name, w in cuts[0].windows.items()
    }
    meta = {key: torch.from_numpy(np.stack([cut.meta[key] for cut in cuts])).to(device) for key in cuts[0].meta}
    if "conditional" in meta:
        meta["conditional"] = torch.ones_like(meta["conditional"])
    batch = Batch(videos, meta, torch.zeros(rows, dtype=torch.long, device=device), ["any"] * rows, list(range(rows)))
    text = text_condition(config)
    if text is not None and text.mode == "frozen":
        assert text.context_length is not None
        assert text.width is not None
        assert text.pooled_width is not None
        batch.text = {
            "tokens": torch.randn(rows, text.context_length, text.width, device=device),
            "mask": torch.ones(rows, text.context_length, dtype=torch.bool, device=device),
            "pooled": torch.randn(rows, text.pooled_width, device=device),
        }
    return batch


def step(family: Family, phase: Phase, role: Role, rows: int, config: RunConfig, device: str) -> dict[str, Any]:
    """One optimiser step of `role`; its loss, peak memory and seconds."""
    trained = {id(p) for r in phase.roles for m in r.modules for p in family.get_submodule(m).parameters()}
    for parameter in family.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        parameter.grad = None
    batch = random_batch(family, phase, rows, config, device)
    optimizer = RoleOptimizer(family, role, config.train.optimizer)
    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    with computing(config.train, torch.device(device)):
        losses = family(role.name, batch, BatchStreams(0, batch.positions, torch.device(device)))
    losses.total.backward()
    norm = optimizer.gradient_norm()
    optimizer.step(config.train.optimizer.lr, norm, (~torch.isfinite(norm)).float())
    loss = losses.total.item()
    memory = torch.cuda.max_memory_allocated() / GIB if cuda else None
    return {
        "phase": phase.name, "role": role.name, "rows": rows, "loss": loss, "finite": bool(np.isfinite(loss)),
        "grad_norm": norm.item(), "memory_gib": memory, "seconds": time.perf_counter() - started,
    }  # fmt: skip


def run_row(preset: str, batch: int, phases: str, device: str) -> dict[str, Any]:
    """Build one preset and step it; `phases`: all, or the name of one."""
    config = with_placeholders(load_run_config(preset))
    with torch.device(device):
        family = build_family(config).train()
    apply_switches(family, config.train.model_copy(update={"compile": False}))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in family.named_children()}
    steps = []
    with matmul_precision(config.train.precision):
        for phase in family.phases():
            if phases in ("all", phase.name):
                rows = min(phase_micro(phase, config.train) or config.train.batch_size, batch)
                steps += [step(family, phase, role, rows, config, device) for role in phase.roles]
    return {"preset": preset, "batch": batch, "parameters": parts, "steps": steps, "precision": config.train.precision}


def compared(row: dict[str, Any]) -> list[str]:
    """Parameters against the references, a line for each."""
    lines = []
    for part, (millions, why) in REFERENCES.get(row["preset"], {}).items():
        ours = row["parameters"][part] / MILLION
        apart = 100 * (ours / millions - 1)
        note = f" ({why})" if why else ""
        lines.append(f"  {part:12s} {ours:8.2f} M, reference {millions:8.2f} M: {apart:+.2f} %{note}")
    return lines or [f"  {sum(row['parameters'].values()) / MILLION:.2f} M, no published count of code"]


def shown(row: dict[str, Any]) -> str:
    """A row for people."""
    if "error" in row:
        return f"{row['preset']} at batch {row['batch']}: {row['error']}"
    lines = [f"{row['preset']} ({row['precision']})"]
    if row["suite"] == "presets":
        lines += compared(row)
    for found in row["steps"]:
        memory = "" if found["memory_gib"] is None else f", {found['memory_gib']:.2f} GiB"
        state = f"loss {found['loss']:.4f}" if found["finite"] else "NOT FINITE"
        lines.append(
            f"  {found['phase']}/{found['role']}: batch {found['rows']}, {state}{memory}, {found['seconds']:.2f} s"
        )
    return "\n".join(lines)


def wanted(args: argparse.Namespace) -> list[tuple[str, int, str]]:
    """(preset, batch, phases) of every row."""
    if args.suite == "memory":
        names = args.only or ["pvdm-ucf101-s", "pvdm-ucf101-l"]
        return [(name, batch, phase) for name in names for phase in ("ldm", "ae") for batch in args.batches]
    return [(name, args.batch, "all") for name in args.only or (TOY if args.toy else REFERENCES)]


def main() -> None:
    """Each row in its own process; print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("presets", "memory"), default="presets")
    parser.add_argument("--only", type=lambda text: text.split(","), help="presets")
    parser.add_argument("--batch", type=int, default=2, help="rows of a step in the presets suite, at most")
    parser.add_argument("--batches", type=lambda t: [int(n) for n in t.split(",")], default=[1, 2, 4, 7, 16, 32])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toy", action="store_true", help="the smoke presets, for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", help="internal: PRESET:BATCH:PHASES in this process")
    args = parser.parse_args()
    if args.one:
        preset, batch, phases = args.one.split(":")
        print(json.dumps(run_row(preset, int(batch), phases, args.device)))
        return
    rows: list[dict[str, Any]] = []
    for preset, batch, phases in wanted(args):
        command = [sys.executable, "-m", "benchmarks.paper_sizes", "--device", args.device]
        run = subprocess.run(
            [*command, "--one", f"{preset}:{batch}:{phases}"], capture_output=True, text=True, check=False
        )
        if run.returncode == 0:
            row = json.loads(run.stdout.splitlines()[-1])
        else:
            row = {"preset": preset, "batch": batch, "error": (run.stderr.strip().splitlines() or ["killed"])[-1]}
        rows.append({**row, "suite": args.suite})
        print(shown(rows[-1]), flush=True)
    write_json(args.json, rows, args.device)
    sys.exit(1 if args.suite == "presets" and any("error" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
