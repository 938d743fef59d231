"""Training throughput and memory: whole steps (noise, loss, backward, clipping, optimiser, EMA) on random patches.

    python -m benchmarks.train_step                          # the table of docs/results.md, one GPU
    python -m benchmarks.train_step --suite patch-memory     # peak memory by resolution
    python -m benchmarks.train_step --preset demo --precision fp32 --batch 4 --device cpu

A row's batch is built once and stays on the device, so that nothing but the step is timed. FLOPs are counted by
PyTorch's counter over one forward and backward pass of one video.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import write_json
from hpdm_core.data.window import Batch
from hpdm_core.families.base import Family
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.nn.attention import attention_dtype
from hpdm_core.nn.precision import autocast, matmul_precision
from hpdm_core.rng import BatchStreams
from hpdm_core.training.ema import Ema
from hpdm_core.training.optim import RoleOptimizer


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    preset: str = "ucf101-m"
    precision: str = "bf16"
    bf16_attention: bool = False
    compile: bool = True
    batch: int = 16
    overrides: tuple[str, ...] = ()


DENSE = ("model.levels_per_block=[3,3,3,3,3,3]",)


def full_resolution(token: str) -> tuple[str, ...]:
    """The same network on whole videos: one level, no pyramid, no fusion."""
    return ("model.patch=[64,256,256]", f"model.token={token}", "model.levels_per_block=[1,1,1,1,1,1]")


SUITES: dict[str, list[Row]] = {
    "main": [
        Row("M adaptive", batch=24),
        Row("M adaptive", batch=1),
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


def measure(row: Row, device: str, seconds: float, *, profile: bool = False) -> dict[str, Any]:
    """Build, warm up, time whole steps for about `seconds`; `profile` prints where one step's time goes."""
    config = load_run_config(row.preset, row.overrides)
    with torch.device(device):
        family = build_family(config)
    role = family.phases()[-1].roles[0]
    optimizer = RoleOptimizer(family, role, config.train.optimizer)
    ema = Ema(config.train.ema, optimizer.params)
    flops = count_flops(family, role.name, device)
    if row.compile:
        torch.compiler.reset()
        for unit in family.compile_units():
            unit.compile(dynamic=False)
    batch = random_batch(family, row.batch, device)
    good = torch.zeros((), device=device)

    def step(index: int) -> None:
        optimizer.zero_grad()
        streams = BatchStreams(0, [index * row.batch + i for i in range(row.batch)], device)
        with autocast(device, row.precision):  # type: ignore[arg-type]
            losses = family(role.name, batch, streams)
        losses.total.backward()
        optimizer.step(1e-4, optimizer.gradient_norm(), good)
        ema.update(index + 1, (index + 1) * row.batch)

    attention = torch.bfloat16 if row.bf16_attention else None
    with matmul_precision(row.precision), attention_dtype(attention):  # type: ignore[arg-type]
        started = time.perf_counter()
        for i in range(3):
            step(i)
        synchronize(device)
        warm = time.perf_counter() - started
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        while sum(times) < seconds or len(times) < 3:
            synchronize(device)
            begin = time.perf_counter()
            step(3 + len(times))
            synchronize(device)
            times.append(time.perf_counter() - begin)
        if profile:
            with torch.profiler.profile() as profiler:
                step(0)
                synchronize(device)
            print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=90))
    median = sorted(times)[len(times) // 2]
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    return {
        **dataclasses.asdict(row),
        "parameters_m": sum(p.numel() for p in family.parameters()) / 1e6,
        "ms": median * 1e3,
        "videos_per_s": row.batch / median,
        "memory_gib": memory,
        "tflop_per_video": flops / 1e12,
        "tflop_per_s": flops * row.batch / median / 1e12,
        "warm_up_s": warm,
        "optimizer": config.train.optimizer.name,
        "clipping": config.train.optimizer.clip_norm,
        "ema_tracks": len(ema.shadows),
        "self_conditioning": getattr(config.model, "self_conditioning", 0.0),
    }


def count_flops(family: Family, role: str, device: str) -> float:
    """Forward and backward FLOPs of one video (2 per multiply-add)."""
    if device != "cuda":
        return float("nan")
    with FlopCounterMode(display=False) as counter, autocast(device, "bf16"):
        family(role, random_batch(family, 1, device), BatchStreams(0, [0], device)).total.backward()
    return float(counter.get_total_flops())


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def show(result: dict[str, Any]) -> str:
    """One line of the table."""
    precision = result["precision"] + (" + bf16 attention" if result["bf16_attention"] else "")
    mode = "compiled" if result["compile"] else "eager"
    return (
        f"{result['name']:32s} {precision:22s} {mode:8s} b{result['batch']:<3d} {result['ms']:8.1f} ms "
        f"{result['videos_per_s']:7.2f} videos/s {result['memory_gib']:6.2f} GiB "
        f"{result['tflop_per_video']:6.2f} TFLOP per video "
        f"{result['tflop_per_s']:6.1f} TFLOP/s (warm-up {result['warm_up_s']:.0f} s)"
    )


def main() -> None:
    """Run a suite, or the one row described by the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(SUITES), default=None)
    parser.add_argument("--preset", default=None)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds a row")
    parser.add_argument("--deadline", type=float, default=1e9, help="start no row after this many seconds")
    parser.add_argument("--profile", action="store_true", help="print the kernels of one step of each row")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = SUITES[args.suite or "main"]
    if args.preset:
        one = Row(args.preset, args.preset, args.precision, False, args.compile, args.batch, tuple(args.overrides))
        rows = [one]
    started, results = time.perf_counter(), []
    for row in rows:
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
        write_json(args.json, results)
    sys.exit(0 if results else 1)


if __name__ == "__main__":
    main()
