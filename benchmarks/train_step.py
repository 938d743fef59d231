"""Training throughput and memory: whole steps of the training loop on random patches that stay on the device.

    python -m benchmarks.train_step                          # the table of docs/results.md, one GPU
    python -m benchmarks.train_step --suite speed            # each optimisation on top of the ones before it
    python -m benchmarks.train_step --suite patch-memory     # peak memory by resolution
    python -m benchmarks.train_step --device cpu --precision fp32 \\
        --preset hpdm-smoke --set model.condition.num_classes=6

A step is noise, loss, backward, clipping, optimiser, EMA and the guard, exactly as `hpdm train` runs it; the batch is
built once, so that no loader is timed. FLOPs are counted by PyTorch's counter over one forward and backward pass of one
video. With --json, rows that the file holds already, from the same commit and machine, are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import stored_rows, write_json
from benchmarks.plain_hpdm import make_plain
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.window import Batch
from hpdm_core.families.base import Family
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.nn.precision import Precision, autocast, matmul_precision
from hpdm_core.rng import BatchStreams
from hpdm_core.training.distributed import World
from hpdm_core.training.ema import Ema
from hpdm_core.training.guard import NonfiniteGuard
from hpdm_core.training.loop import Trainer
from hpdm_core.training.optim import RoleOptimizer
from hpdm_core.training.state import TrainState
from hpdm_core.training.switches import apply_switches

WARM_UP = 4
"""Steps before timing: enough to compile and to capture a CUDA graph."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. plain: the literal implementation; whole: compile the network as one unit."""

    name: str
    preset: str = "ucf101-m"
    precision: Precision = "bf16"
    bf16_attention: bool | str = False
    compile: bool = True
    batch: int = 16
    overrides: tuple[str, ...] = ()
    plain: bool = False
    whole: bool = False

    @property
    def settings(self) -> list[str]:
        """The row's overrides of its preset."""
        train = {
            "max_steps": 10**6,
            "batch_size": self.batch,
            "micro_batch": "null",
            "precision": self.precision,
            "bf16_attention": str(self.bf16_attention).lower(),
            "compile": str(self.compile and not self.whole).lower(),
            "cuda_graph": "false",  # also where the preset leaves it to the run
        }
        return [*(f"train.{key}={value}" for key, value in train.items()), *self.overrides]

    @property
    def mode(self) -> str:
        """How the blocks run."""
        kind = "plain" if self.plain else "whole" if self.whole else "compiled" if self.compile else "eager"
        return kind + (" graph" if "train.cuda_graph=true" in self.overrides else "")


DENSE = ("model.levels_per_block=[3,3,3,3,3,3]",)
GRAPH = ("train.cuda_graph=true",)
STREAMS = ("train.residual=bf16",)
FLOAT8 = ("train.float8=true",)


def full_resolution(token: str) -> tuple[str, ...]:
    """The same network on whole videos: one level, no pyramid, no fusion."""
    return ("model.patch=[64,256,256]", f"model.token={token}", "model.levels_per_block=[1,1,1,1,1,1]")


SUITES: dict[str, list[Row]] = {
    "main": [
        Row("M adaptive", batch=24),
        Row("M adaptive", batch=1),
        Row("M adaptive", batch=1, overrides=GRAPH),
        Row("M adaptive", compile=False, batch=16),
        Row("M adaptive", compile=False, batch=1),
        Row("M dense", batch=16, overrides=DENSE),
        Row("M dense", batch=1, overrides=DENSE),
        Row("S adaptive", preset="ucf101-s", batch=24),
        Row("L adaptive", preset="ucf101-l", batch=16),
        Row("M adaptive", precision="tf32", bf16_attention=True, batch=12),
        Row("M adaptive", precision="tf32", bf16_attention=True, compile=False, batch=12),
        Row("M adaptive", precision="tf32", bf16_attention=True, compile=False, batch=1),
        Row("M dense", precision="tf32", bf16_attention=True, compile=False, batch=8, overrides=DENSE),
        Row("M full resolution, 1x4x4 tokens", batch=1, overrides=full_resolution("[1,4,4]")),
        Row("M full resolution, 1x8x8 tokens", batch=4, overrides=full_resolution("[1,8,8]")),
        Row("M adaptive", precision="fp32", compile=False, batch=4),
        Row("M adaptive", precision="fp32", compile=False, batch=1),
        Row("M adaptive", precision="fp32", batch=4),
    ],
    "speed": [
        Row("compiled blocks", batch=24),
        Row("+ whole step as a CUDA graph", batch=1, overrides=GRAPH),
        Row("+ residual streams in bf16", batch=24, overrides=STREAMS),
        Row("fp32 storage, bf16 attention layers", precision="tf32", bf16_attention="whole", batch=12),
        Row("plain", precision="fp32", compile=False, plain=True, batch=2),
        Row("split fusion, separable context", precision="fp32", compile=False, batch=2),
        Row("plain", compile=False, plain=True, batch=8),
        Row("split fusion, separable context", compile=False, batch=8),
        Row("fp32 storage, bf16 attention", precision="tf32", bf16_attention=True, batch=12),
        Row("+ wide MLPs in float8", batch=24, overrides=STREAMS + FLOAT8),
        Row("CUDA graph, bf16 streams", batch=1, overrides=GRAPH + STREAMS),
        Row("compiled blocks", batch=1),
        Row("compiled as one unit", batch=24, whole=True),
    ],
    "patch-memory": [
        Row("64x256x256, 3 levels", compile=False, batch=1),
        Row(
            "64x512x512, 4 levels", compile=False, batch=1,
            overrides=("model.video=[64,512,512]", "model.levels_per_block=[1,1,2,2,3,4]"),
        ),
        Row(
            "64x1024x1024, 5 levels", compile=False, batch=1,
            overrides=("model.video=[64,1024,1024]", "model.levels_per_block=[1,1,2,3,4,5]"),
        ),
    ],
}  # fmt: skip


def random_batch(family: Family, batch: int, device: str) -> Batch:
    """Random pixels in the shape of one training batch."""
    view = family.view(family.phases()[-1].name)
    cuts = [view.cut(0, np.random.default_rng(i)) for i in range(batch)]
    videos = {
        name: torch.rand(batch, 3, w.frames, w.height, w.width, device=device) * 2 - 1
        for name, w in cuts[0].windows.items()
    }
    meta = {key: torch.from_numpy(np.stack([c.meta[key] for c in cuts])).to(device) for key in cuts[0].meta}
    return Batch(videos, meta, torch.zeros(batch, dtype=torch.long, device=device), [""] * batch, list(range(batch)))


def endless(batch: Batch) -> Iterator[Batch]:
    """The same patches again and again, each time at the next positions of the data stream."""
    size = len(batch.positions)
    for step in itertools.count():
        yield dataclasses.replace(batch, positions=list(range(step * size, (step + 1) * size)))


def build_trainer(row: Row, config: RunConfig, device: str) -> Trainer:
    """The training loop of the row, on random patches."""
    torch.manual_seed(0)
    with torch.device(device):
        family = build_family(config)
    if row.plain:
        make_plain(family)
    apply_switches(family, config.train)
    if row.whole:
        family.get_submodule("denoiser").compile(dynamic=False)
    phase = family.phases()[-1]
    roles = [RoleOptimizer(family, role, config.train.optimizer) for role in phase.roles]
    ema = Ema(config.train.ema, {name: p for role in roles for name, p in role.params.items()})
    world = World(torch.device(device, 0) if device == "cuda" else torch.device(device))
    batches = endless(random_batch(family, row.batch, device))
    guard = NonfiniteGuard(config.train.nonfinite)
    return Trainer(config.train, phase, family, family, roles, ema, batches, TrainState(), world, guard)


def measure(row: Row, device: str, seconds: float, *, profile: bool = False) -> dict[str, Any]:
    """Build, warm up, time steps for about `seconds`; `profile` prints where one step's time goes."""
    torch.compiler.reset()
    config = load_run_config(row.preset, row.settings)
    flops = count_flops(config, device)
    trainer = build_trainer(row, config, device)
    with matmul_precision(row.precision):
        started = time.perf_counter()
        steps = trainer.steps()
        for index in range(WARM_UP):
            if index == WARM_UP - 1 and device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            next(steps)
        synchronize(device)
        begin = time.perf_counter()
        warm, count = begin - started, 0
        while count < 3 or time.perf_counter() - begin < seconds:
            next(steps)
            count += 1
        synchronize(device)
        elapsed = (time.perf_counter() - begin) / count
        if profile:
            with torch.profiler.profile() as profiler:
                next(steps)
                synchronize(device)
            print(
                profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=110)
            )
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    trainer.settle()
    role = trainer.roles[0]
    return {
        **dataclasses.asdict(row),
        "loss": trainer.state.meter[f"{role.name}/loss"][0] / (WARM_UP + count + profile),
        "parameters_m": sum(p.numel() for p in trainer.family.parameters()) / 1e6,
        "ms": elapsed * 1e3,
        "videos_per_s": row.batch / elapsed,
        "memory_gib": memory,
        "tflop_per_video": flops / 1e12,
        "tflop_per_s": flops * row.batch / elapsed / 1e12,
        "warm_up_s": warm,
        "optimizer": role.section.name,
        "clipping": role.section.clip_norm,
        "ema_tracks": len(trainer.ema.shadows),
        "self_conditioning": getattr(config.model, "self_conditioning", 0.0),
    }


def count_flops(config: RunConfig, device: str) -> float:
    """Forward and backward FLOPs of one video (2 per multiply-add)."""
    if device != "cuda":
        return float("nan")
    with torch.device(device):
        family = build_family(config)
    role = family.phases()[-1].roles[0].name
    with FlopCounterMode(display=False) as counter, autocast(device, "bf16"):
        family(role, random_batch(family, 1, device), BatchStreams(0, [0], device)).total.backward()
    return float(counter.get_total_flops())


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def show(result: dict[str, Any]) -> str:
    """One line of the table."""
    attention = {True: " + bf16 attention", "whole": " + bf16 attention layers"}.get(result["bf16_attention"], "")
    precision = result["precision"] + attention
    mode = Row(**{field.name: result[field.name] for field in dataclasses.fields(Row)}).mode
    return (
        f"{result['name']:34s} {precision:22s} {mode:14s} b{result['batch']:<3d} {result['ms']:8.1f} ms "
        f"{result['videos_per_s']:7.2f} videos/s {result['memory_gib']:6.2f} GiB "
        f"{result['tflop_per_video']:6.2f} TFLOP per video "
        f"{result['tflop_per_s']:6.1f} TFLOP/s loss {result['loss']:.4f} (warm-up {result['warm_up_s']:.0f} s)"
    )


def described(values: dict[str, Any]) -> str:
    """What a row is, apart from what was measured."""
    return json.dumps({field.name: values[field.name] for field in dataclasses.fields(Row)}, sort_keys=True)


def main() -> None:
    """Run a suite, or the one row described by the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(SUITES), default=None)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows of the suite with one of these names")
    parser.add_argument("--preset", default=None)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--bf16-attention", choices=("core", "whole"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds a row")
    parser.add_argument("--deadline", type=float, default=1e9, help="start no row after this many seconds")
    parser.add_argument("--profile", action="store_true", help="print the kernels of one step of each row")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    suite = SUITES[args.suite or "main"]
    if unknown := set(args.only or ()) - {row.name for row in suite}:
        parser.error(f"the suite has no rows {sorted(unknown)}; its rows: {sorted({row.name for row in suite})}")
    rows = [row for row in suite if args.only is None or row.name in args.only]
    if args.preset:
        attention, overrides = {"core": True, "whole": "whole", None: False}[args.bf16_attention], tuple(args.overrides)
        rows = [Row(args.preset, args.preset, args.precision, attention, args.compile, args.batch, overrides)]
    started, results = time.perf_counter(), stored_rows(args.json, args.device)
    done = {described(result) for result in results}
    for row in rows:
        if described(dataclasses.asdict(row)) in done:
            continue
        if time.perf_counter() - started > args.deadline:
            print(f"{row.name}: not run, past the deadline", flush=True)
            continue
        try:
            results.append(measure(row, args.device, args.seconds, profile=args.profile))
            print(show(results[-1]), flush=True)
        except torch.OutOfMemoryError:
            print(f"{row.name} b{row.batch}: out of memory", flush=True)
        with contextlib.suppress(RuntimeError):
            gc.collect()
            torch.cuda.empty_cache()
        write_json(args.json, results, args.device)
    sys.exit(0 if results else 1)


if __name__ == "__main__":
    main()
