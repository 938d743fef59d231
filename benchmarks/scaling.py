"""Weak scaling over the GPUs of one machine, the loss curve on one and on many ranks, and what a checkpoint costs.

    python -m benchmarks.scaling --json scaling.json              # all GPUs of this machine, HPDM-M, bf16, compiled
    python -m benchmarks.scaling --rows one,ddp --ranks 2         # these only: one, apart, ddp, ddp-sync, fsdp,
                                                                  # fsdp-kept, curve
    python -m benchmarks.scaling --batch 96 --micro 24            # steps of four passes with one exchange
    python -m benchmarks.scaling --ranks 2 --device cpu --preset hpdm-smoke --mini hpdm-smoke --batch 2 --steps 4

Every row is `hpdm_core.training.run.fit` itself, in processes of its own, on random patches that stay on the device:
the loop, its collectives and its checkpoints, without a loader. A step is the time between two requests for data, so
all that happens between steps is in it.

* scaling: videos/s on 1 and on N ranks with the same batch a rank, DDP and FSDP2; efficiency is the N-rank rate over N
  times that of one rank. `apart`: N runs of one rank each, started together, that share the host and exchange nothing;
  its rate is N times the slowest's, and what it lacks to 100 % is the machine's, not the exchange's.
* checkpoint: the step that saves against the mean step (stall), and all that the run lost until the end of the
  measurement (cost), for async_checkpoint on and off.
* curve: losses of `--mini` on the same global batches, 1 rank against N; the largest relative difference.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine_facts, write_json
from benchmarks.train_step import random_batch
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.window import Batch
from hpdm_core.families.registry import load_run_config
from hpdm_core.report.reading import read_log
from hpdm_core.rng import derive_seed
from hpdm_core.training.conditions import class_condition
from hpdm_core.training.run import fit
from hpdm_core.training.source import weightless_family

WARM_UP = 5
ROWS = ["one", "apart", "ddp", "ddp-sync", "fsdp", "fsdp-kept", "curve"]


@dataclass(frozen=True)
class Case:
    """One run, or `ranks` runs apart, of `batch` each; a checkpoint is written after step `save_at`, and at the end."""

    name: str
    preset: str
    ranks: int
    batch: int
    micro: int
    steps: int
    save_at: int
    device: str
    overrides: tuple[str, ...] = ()
    apart: bool = False


class Patches:
    """A source of random patches. `fixed`: the same ones over and over; otherwise position k has pixels of its own."""

    fingerprint = "random"
    fps: float | None = None

    def __init__(self, config: RunConfig, *, fixed: bool) -> None:
        condition = class_condition(config)
        self.classes = tuple(map(str, range((condition.num_classes if condition else None) or 10)))
        self.stamps: list[float] = []
        self._family, self._fixed = weightless_family(config), fixed

    def captions(self) -> Iterator[str]:
        """None."""
        return iter(())

    def embeddings(self, text: Any) -> Any:
        """None."""
        raise NotImplementedError("random patches have no captions")

    def batches(self, view: Any, *, start: int, batch_size: int, micro_batch: int, world: Any) -> Iterator[Batch]:
        """See `Source.batches`."""
        device = str(world.device)
        kept = random_batch(self._family, micro_batch, device) if self._fixed else None
        position = start
        while True:
            self.stamps.append(time.perf_counter())
            mine = range(position + world.rank, position + batch_size, world.size)
            for first in range(0, len(mine), micro_batch):
                positions = list(mine[first : first + micro_batch])
                yield self._batch(kept, positions, device)
            position += batch_size

    def _batch(self, kept: Batch | None, positions: list[int], device: str) -> Batch:
        if kept is not None:
            return Batch(kept.videos, kept.meta, kept.labels, kept.captions, positions)
        rows = []
        for position in positions:
            torch.manual_seed(derive_seed(0, "benchmark", position))
            rows.append(random_batch(self._family, 1, "cpu"))
        videos = {name: torch.cat([row.videos[name] for row in rows]) for name in rows[0].videos}
        meta = {name: torch.cat([row.meta[name] for row in rows]) for name in rows[0].meta}
        labels = torch.cat([row.labels for row in rows])
        return Batch(videos, meta, labels, [""] * len(rows), positions).to(device)


def run_rank(case: Case, out: Path) -> None:
    """One rank of a case; rank 0 leaves the times of its steps beside the run."""
    config = load_run_config(case.preset, case.overrides)
    source = Patches(config, fixed=case.name != "curve")
    fit(config, source, out, device=case.device)
    if os.environ["RANK"] == "0":
        (out / "stamps.json").write_text(json.dumps(source.stamps))


def run_case(case: Case, folder: Path) -> list[Path]:
    """Start the ranks of a case and wait for them; the run directory, or those of runs apart."""
    name = f"{case.name}-{case.ranks}-{len(list(folder.iterdir()))}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "benchmarks.scaling", "--rank-of", json.dumps(asdict(case)), "--out"]
    outs = [folder / (f"{name}-{index}" if case.apart else name) for index in range(case.ranks)]
    ranks = []
    for index, out in enumerate(outs):
        place = {"LOCAL_RANK": str(index), "RANK": str(index), "WORLD_SIZE": str(case.ranks)}
        if case.apart:
            place |= {"RANK": "0", "WORLD_SIZE": "1"}
        ranks.append(subprocess.Popen([*command, str(out)], env={**common, **place}))
    while any(rank.poll() is None for rank in ranks):
        if any(rank.returncode for rank in ranks):  # the others would wait for it
            for rank in ranks:
                rank.kill()
        time.sleep(0.1)
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"{case.name} on {case.ranks} ranks failed")
    return outs if case.apart else outs[:1]


def timings(case: Case, outs: Sequence[Path]) -> dict[str, Any]:
    """Rate, and stall and cost of the checkpoint, from the times at which rank 0 asked for data; of the slowest run."""
    every = [np.diff(json.loads((out / "stamps.json").read_text())) for out in outs]
    means = [float(seconds[WARM_UP : case.save_at - 1].mean()) for seconds in every]
    mean = max(means)
    out, seconds = outs[means.index(mean)], every[means.index(mean)]
    after = seconds[case.save_at - 1 :]
    return {
        "videos_per_s": case.batch * len(outs) / mean,
        "steps_ms": [value * 1e3 for value in means],
        "step_ms": mean * 1e3,
        "checkpoint_stall_s": float(after[0]) - mean,
        "checkpoint_cost_s": float(after.sum()) - mean * len(after),
        "checkpoint_gb": sum(f.stat().st_size for f in newest(out).rglob("*") if f.is_file()) / 1e9,
    }


def newest(run: Path) -> Path:
    """The last checkpoint of a run."""
    return max((run / "checkpoints").glob("step_*"))


def losses(run: Path) -> np.ndarray:
    """The loss of every step."""
    return np.array([line["loss"] for line in read_log(run)])


def cases(args: argparse.Namespace) -> list[Case]:
    """The runs of the scaling and checkpoint tables."""
    save_at = WARM_UP + args.steps + 1
    steps = save_at + args.steps
    common = (
        f"train.max_steps={steps}",
        f"train.checkpoint_every_steps={save_at}",
        "train.keep_checkpoints=1",
        f"train.log_every_steps={steps}",
        f"train.precision={args.precision}",
        f"train.compile={str(args.compile).lower()}",
        "train.sample_every_steps=null",
        "train.max_videos=null",
        "train.cuda_graph=false",  # one rank could, several cannot
    )
    rows, micro = [], args.micro or args.batch
    for name, ranks, apart in (
        ("one", 1, False),
        ("apart", args.ranks, True),
        ("ddp", args.ranks, False),
        ("ddp-sync", args.ranks, False),
        ("fsdp", args.ranks, False),
        ("fsdp-kept", args.ranks, False),
    ):
        batch = args.batch * (1 if apart else ranks)
        settings = (
            f"train.batch_size={batch}",
            f"train.micro_batch={micro}",
            f"train.parallel={'fsdp' if name.startswith('fsdp') else 'ddp'}",
            f"train.fsdp_keep_weights={str(name == 'fsdp-kept').lower()}",
            f"train.async_checkpoint={str(name != 'ddp-sync').lower()}",
        )
        rows.append(
            Case(name, args.preset, ranks, batch, micro, steps, save_at, args.device, (*common, *settings), apart)
        )
    return [row for row in rows if row.name in args.rows]


def curve_case(args: argparse.Namespace, ranks: int) -> Case:
    """A run of the loss curve: the same global batches whatever the number of ranks."""
    batch = 4 * args.ranks
    settings = (
        f"train.max_steps={args.curve_steps}",
        "train.max_videos=null",
        f"train.checkpoint_every_steps={args.curve_steps}",
        "train.log_every_steps=1",
        "train.sample_every_steps=null",
        "train.precision=fp32",
        "train.compile=false",
        f"train.batch_size={batch}",
        "train.micro_batch=4",
    )
    return Case("curve", args.mini, ranks, batch, 4, args.curve_steps, args.curve_steps, args.device, settings)


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: text.split(","), default=ROWS, help="a part of the tables")
    parser.add_argument("--ranks", type=int, default=max(torch.cuda.device_count(), 2))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="ucf101-m")
    parser.add_argument("--mini", default="demo", help="preset of the loss curve")
    parser.add_argument("--batch", type=int, default=16, help="videos a rank")
    parser.add_argument("--micro", type=int, help="of which so many in one pass, gradients summed (default: all)")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument("--steps", type=int, default=25, help="timed steps before the checkpoint, and after it")
    parser.add_argument("--curve-steps", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if set(args.rows) - set(ROWS):
        parser.error(f"--rows takes {', '.join(ROWS)}")
    if args.rank_of:
        raw = json.loads(args.rank_of)
        run_rank(Case(**{**raw, "overrides": tuple(raw["overrides"])}), args.out)
        return
    facts = machine_facts(args.device)
    batch = f"batch {args.batch} a rank" + (f" in passes of {args.micro}" if args.micro else "")
    print(f"{facts['device']}, torch {facts['torch']}; {args.preset}, {args.precision}, {batch}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in cases(args):
            row = {**asdict(case), **timings(case, run_case(case, folder))}
            rows.append(row)
            if rows[0]["name"] == "one":
                row["efficiency"] = row["videos_per_s"] / case.ranks / rows[0]["videos_per_s"]
            print(show(row), flush=True)
            write_json(args.json, rows, args.device)
        if "curve" not in args.rows:
            return
        curves = [losses(*run_case(curve_case(args, ranks), folder)) for ranks in (1, args.ranks)]
    difference = float(np.max(np.abs(curves[1] / curves[0] - 1)))
    print(f"loss curve of {args.mini}: {len(curves[0])} steps, {curves[0][0]:.4f} to {curves[0][-1]:.4f};", end=" ")
    print(f"1 rank against {args.ranks}: largest relative difference {difference:.1e}")
    write_json(
        args.json, rows, args.device, curve={"losses": [c.tolist() for c in curves], "largest_difference": difference}
    )


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    share = f"{row['efficiency']:.1%}" if "efficiency" in row else "-"
    each = "" if not row["apart"] else f" ({', '.join(f'{ms:.1f}' for ms in row['steps_ms'])})"
    return (
        f"{row['ranks']} x {row['name']:<8} {row['videos_per_s']:8.2f} videos/s {row['step_ms']:9.1f} ms a step{each} "
        f"{share:>7}   checkpoint {row['checkpoint_gb']:.2f} GB "
        f"stall {row['checkpoint_stall_s']:6.2f} s, cost {row['checkpoint_cost_s']:6.2f} s"
    )


if __name__ == "__main__":
    main()
