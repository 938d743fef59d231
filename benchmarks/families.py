"""The families side by side: small models of at most 20 M parameters, equal training seconds, class condition for all.

    python -m benchmarks.families --minutes 1 --out results/families                    # procedural clips
    python -m benchmarks.families --minutes 1 --out results/families --store data/train --held-out data/test
    python -m benchmarks.families --toy --out /tmp/toy                                  # a minute on a CPU

Each arm is a process of its own, one after the other, so that its peak memory is its own and none shares the device.
An arm's time covers all of its phases, an autoencoder's too: a few steps of every phase are timed first (not counted),
and the budget is divided by those times. Then the model and the same network untrained make videos, which are
compared with held-out clips over the features of a seeded random I3D (rFVD: comparable within a table only).
Finished rows are kept, and an arm that the deadline stops goes on from its checkpoint: the same command continues.

All arms use one optimiser with one schedule (but for an adversarial phase), and none learns what 16-frame samples do
not show: one family's use of the clip before. The rivals sample with the solver that their `sample.fast` names, in
twice as many steps: on Gaussian data more steps of their papers' DDIM and DDPM leave a larger error of the spread.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learned import save_grid, untrained
from benchmarks.levels import level_chunks
from benchmarks.machine import write_json
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.store import VideoStore
from hpdm_core.errors import StoppedOnRequest
from hpdm_core.families.generate import iterate_samples, outline
from hpdm_core.families.registry import load_run_config
from hpdm_core.families.weights import LoadedModel, load_model
from hpdm_core.metrics.evaluate import Evaluation, evaluate
from hpdm_core.metrics.protocol import load_protocol
from hpdm_core.metrics.sources import open_source
from hpdm_core.report.reading import read_log
from hpdm_core.training.run import train

FRAMES = 16
AGAIN = 75
"""The exit code of an arm that the deadline stopped."""

SHARES: dict[str, tuple[float, ...]] = {"hpdm": (1.0,), "pvdm": (0.35, 0.05, 0.6), "mdm": (0.1, 0.25, 0.65)}
"""Each phase's share of an arm's time."""

SAMPLING: dict[str, dict[str, Any]] = {
    "hpdm": {"steps": [32, 16, 12], "clip": True},
    "pvdm": {"steps": [100], "solver": ["dpmpp_2m"]},
    "mdm": {"steps": [100], "solver": ["dpmpp_2m"]},
}

TOY: dict[str, list[str]] = {
    "hpdm": ["model.token_dim=32", "model.latent_dim=32", "model.num_latents=8", "model.head_dim=16"],
    "pvdm": [
        "model.autoencoder={width: 32, depth: 1, heads: 2, head_dim: 16, projector_depth: 1, projector_head_dim: 8}",
        "model.denoiser={width: 16, multipliers: [1, 2], blocks: 1, heads: 2}", "model.patch=4",
        "model.critic.width=8",
    ],
    "mdm": ["model.embedding_dim=32", "model.condition_dim=32"],
}  # fmt: skip
"""What makes each arm small enough for a CPU."""

CALIBRATION, EVERY = 40, 10
"""Steps of each phase that are run first, and after how many a line is logged, for which the host waits. Those before
the first line are not timed: both of two roles that take turns are captured as CUDA graphs in their fourth.
"""


def preset(arm: str, size: int, *, toy: bool) -> tuple[str, list[str]]:
    """The preset of an arm and what changes it to 16 frames of `size` x `size` within 20 M parameters."""
    quarter, tiny = size // 4, TOY[arm] if toy else []
    if arm == "hpdm":
        video = [f"model.video=[{FRAMES},{size},{size}]", f"model.patch=[4,{quarter},{quarter}]"]
        video.append(f"model.token=[1,{max(1, size // 32)},{max(1, size // 32)}]")  # 256 a patch
        narrow = ["model.token_dim=256", "model.latent_dim=256", "model.num_latents=128", "model.latent_layers=1"]
        return "ucf101-mini", [*video, *narrow, *tiny]
    if arm == "pvdm":
        clip = [f"model.video=[{FRAMES},{size},{size}]", "model.training.previous_share=0"]
        return "pvdm-mini", [*clip, f"model.patch={size // 16}", *tiny]
    levels = load_run_config("mdm-mini").model.model_dump(mode="json")["levels"]
    for level, side in zip(levels, (quarter, quarter, size), strict=True):
        level["size"] = [side, side]
        level["channels"] = [32] * len(level["channels"]) if toy else level["channels"]
    return "mdm-mini", [f"model.levels={json.dumps(levels)}", *tiny]


def phase_steps(arm: str, steps: list[int]) -> list[str]:
    """Overrides that give each phase of `arm` its number of steps; a phase of no steps is left out where it can be."""
    if arm == "hpdm":
        return [f"train.max_steps={steps[0]}"]
    if arm == "pvdm":
        gan = [f"model.training.ae_gan.steps={steps[1]}", "model.training.ae_gan.batch_size=null"]
        return [
            f"model.training.ae.steps={steps[0]}", "model.training.ae.batch_size=null",
            *(gan if steps[1] else ["model.training.ae_gan=null"]), f"train.max_steps={steps[2]}",
        ]  # fmt: skip
    phases = [{"name": n, "levels": i + 1, "steps": steps[i]} for i, n in enumerate(("low", "mid", "full"))]
    return [f"model.phases={json.dumps(phases)}", f"train.max_steps={steps[2]}"]


def warm_up(arm: str, steps: list[int]) -> list[str]:
    """Overrides: learning rates rise for a fiftieth of the longest phase, an autoencoder's for one of its own."""
    first, longest = (max(1, count // 50) for count in (steps[0], max(steps)))
    own = [f"model.training.ae.optimizer.warmup_steps={first}"] if arm == "pvdm" else []
    return [f"train.optimizer.warmup_steps={longest}", *own]


def arm_config(arm: str, size: int, steps: list[int], args: argparse.Namespace, *more: str) -> RunConfig:
    """The config of one arm with so many steps in each of its phases."""
    name, changes = preset(arm, size, toy=args.toy)
    batch = 2 if args.toy else args.batch
    micro = min(batch, args.micro or batch)
    shared = [
        f"train.batch_size={batch}",
        f"train.micro_batch={micro}",
        "train.compile=false",
        "train.cuda_graph=auto",
        f"train.seed={args.seed}",
    ]
    # Compiling would take longer than training; a CUDA graph, for the phases whose steps are alike, saves the launches.
    # Products in bf16 are slow on a CPU.
    own = [f"data.workers={0 if args.toy else args.workers}", *(["train.precision=fp32"] if args.toy else [])]
    return load_run_config(name, [*changes, *phase_steps(arm, steps), *shared, *own, *more])


def calibrate(arm: str, size: int, store: Path, out: Path, args: argparse.Namespace) -> list[int]:
    """Steps of each phase that fill its share of the budget, from the time of a few."""
    file = out / "steps.json"
    if file.exists():
        return json.loads(file.read_text())
    shares, every = SHARES[arm], 2 if args.toy else EVERY
    few = [(4 if args.toy else CALIBRATION) if share else 0 for share in shares]
    logs = (f"train.log_every_steps={every}", "train.checkpoint_every_steps=100000", "train.optimizer.warmup_steps=0")
    train(arm_config(arm, size, few, args, *logs), store, out / "calibration", device=args.device)
    lines = list(read_log(out / "calibration"))
    names = list(dict.fromkeys(line["phase"] for line in lines))
    seconds = []
    for name in names:
        times = [line["seconds"] for line in lines if line["phase"] == name]
        seconds.append((times[-1] - times[0]) / (every * (len(times) - 1)))
    times = iter(seconds)
    steps = [max(2, int(args.minutes * 60 * share / next(times))) if share else 0 for share in shares]
    file.write_text(json.dumps(steps))
    return steps


def run_arm(arm: str, size: int, data: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one arm for its time, sample it and its untrained self, score both."""
    out, (store, held_out) = folder(args, arm, size, data), stores(args, size, data)
    out.mkdir(parents=True, exist_ok=True)
    steps = calibrate(arm, size, store, out, args)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    longest = max(steps)
    often = [f"train.checkpoint_every_steps={max(1, longest // 4)}", f"train.log_every_steps={max(1, longest // 50)}"]
    config = arm_config(arm, size, steps, args, *often, *warm_up(arm, steps))
    left = args.until - time.time() if args.until else None
    train(config, store, out / "run", device=args.device, time_limit=left)
    lines = list(read_log(out / "run"))
    last = {line["phase"]: line for line in lines}
    model = load_model(out / "run", device=args.device)
    test = VideoStore.open(held_out)
    known = [test.classes[c.label] for c in test.clips if c.label is not None]
    classes = [name for name in known if name in model.header.classes]
    cost = outline(model, frames=None, size=None, **sampling(arm, args))
    made, seconds = make(model, classes, arm, out / "samples.npy", args)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.family.named_children()}
    blank = None
    if not args.no_untrained:
        model = untrained(model, args.device)
        gc.collect()  # the trained one, whose graphs hold as much memory as its own will
        torch.cuda.empty_cache()
        blank, _ = make(model, classes, arm, out / "untrained.npy", args)
    return {
        "arm": arm, "size": size, "data": data, "seed": args.seed, "budget_s": args.minutes * 60,
        "trained_s": lines[-1]["seconds"], "batch": config.train.batch_size,
        "steps": {name: line["step"] for name, line in last.items()}, "videos_seen": lines[-1]["videos_seen"],
        "videos_per_s": {name: line["videos_per_s"] for name, line in last.items()},
        "memory_gib": max(line["memory_gib"] for line in lines), "parameters": parts,
        "n": args.num, "sampling": sampling(arm, args), "calls": sum(s.tile_calls for s in cost.stages),
        "block_evals": sum(s.block_evals for s in cost.stages), "seconds_per_clip": seconds / args.num,
        "rfvd": score(made, held_out, args),
        "rfvd_untrained": None if blank is None else score(blank, held_out, args),
    }  # fmt: skip


def make(model: LoadedModel, classes: list[str], arm: str, path: Path, args: argparse.Namespace) -> tuple[Path, float]:
    """Videos of seeds 0 to n - 1 as one array file, and the seconds that they took."""
    if args.device == "cuda":
        torch.cuda.synchronize()
    started, options = time.perf_counter(), sampling(arm, args)
    found = iterate_samples(
        model, range(args.num), classes=classes, batch=args.sample_batch, device=args.device, **options
    )
    np.save(path, np.stack([item.video for item in found]))
    return path, time.perf_counter() - started


def sampling(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options of an arm."""
    options = {"precision": "bf16" if args.device == "cuda" else "fp32", "graphs": True, **SAMPLING[arm]}
    if args.toy:
        options["steps"] = [2] * len(options["steps"])
    tiles = level_chunks(torch.device(args.device), args.sample_batch)
    return options | (tiles if arm == "hpdm" else {"chunk": args.sample_batch})


def score(videos: Path, held_out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """rFVD of an array file against held-out clips, with its 95 % interval."""
    source = open_source(videos)
    frames = np.load(videos, mmap_mode="r").shape[1]
    usable = sum(clip.num_frames >= frames for clip in VideoStore.open(held_out).clips)
    protocol = load_protocol("fvd512").updated(
        {
            "clip": {"frames": frames},
            "real": {"select": "random", "count": min(args.num, usable), "start": "random"},
            "fake": {"count": args.num},
            "detector": {"name": "random-i3d"},
        }
    )
    result = evaluate(Evaluation(protocol, source, held_out, ("fvd",), device=args.device))
    return {**result["metrics"]["fvd"], "protocol_hash": result["protocol_hash"]}


def stores(args: argparse.Namespace, size: int, data: str) -> tuple[Path, Path]:
    """The training store and the held-out one; procedural ones are made where they are missing."""
    if data != "synthetic":
        return args.store, args.held_out
    made = args.out / f"synthetic-{size}"
    for name, clips, seed in (("train", args.clips, 1), ("test", max(args.num, 8), 2)):
        if not (made / name / "store.json").exists():
            size_text = f"{size}x{size}"
            command = ["prepare-data", "--source", "synthetic", "--num", str(clips), "--frames", str(2 * FRAMES),
                       "--size", size_text, "--seed", str(seed), "--out", str(made / name)]  # fmt: skip
            subprocess.run([sys.executable, "-m", "hpdm_cli", *command], check=True)
    return made / "train", made / "test"


def folder(args: argparse.Namespace, arm: str, size: int, data: str) -> Path:
    """Where an arm's run, samples and row lie."""
    return args.out / f"{data}-{size}-{arm}-{args.seed}"


def sheet(args: argparse.Namespace, size: int, data: str) -> None:
    """A picture of the first samples of every finished arm, held-out clips first."""
    files = [folder(args, arm, size, data) / "samples.npy" for arm in SHARES]
    groups = [np.load(file, mmap_mode="r")[:4] for file in files if file.exists()]
    if not groups:
        return
    store, frames = VideoStore.open(stores(args, size, data)[1]), groups[0].shape[1]
    shown = [clip for clip in store.clips if clip.num_frames >= frames][:4]
    real = [store.read_frames(clip.index, (size, size), num_frames=frames) for clip in shown]
    count = min(len(real), *map(len, groups))
    save_grid(args.out / f"{data}-{size}.png", [np.stack(real)[:count], *(np.asarray(g)[:count] for g in groups)])


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    head = (f"{'data':>9} {'size':>4} {'arm':>5} {'M param':>8} {'trained s':>9} {'videos':>8} {'videos/s':>8} "
            f"{'GiB':>6} {'calls':>6} {'s/clip':>7} {'rFVD':>9} {'95 %':>19} {'untrained':>9}")  # fmt: skip
    lines = [head]
    for row in rows:
        low, high = row["rfvd"]["ci95"] or (float("nan"),) * 2
        blank = row["rfvd_untrained"]
        millions = sum(n for name, n in row["parameters"].items() if name != "critics") / 1e6
        rate = list(row["videos_per_s"].values())[-1]
        lines.append(
            f"{row['data'][:9]:>9} {row['size']:>4} {row['arm']:>5} {millions:>8.2f} {row['trained_s']:>9.1f} "
            f"{row['videos_seen']:>8} {rate:>8.1f} {row['memory_gib']:>6.2f} {row['calls']:>6} "
            f"{row['seconds_per_clip']:>7.2f} {row['rfvd']['value']:>9.3f} {f'{low:.3f} to {high:.3f}':>19} "
            f"{blank['value'] if blank else float('nan'):>9.3f}"
        )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(SHARES))
    parser.add_argument("--sizes", type=lambda text: [int(s) for s in text.split(",")], default=[64, 128])
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of one arm")
    parser.add_argument("--store", type=Path, help="a store of real clips to train on (default: procedural ones)")
    parser.add_argument("--held-out", type=Path, help="the store of the same classes to compare with")
    parser.add_argument("--num", type=int, default=256, help="videos of each arm")
    parser.add_argument("--clips", type=int, default=4000, help="procedural training clips")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro", type=int, help="rows of a micro-batch, all by default: parts allow no CUDA graph")
    parser.add_argument("--sample-batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-untrained", action="store_true", help="do not also score the untrained networks")
    parser.add_argument("--no-gan", action="store_true", help="leave the adversarial phase out")
    parser.add_argument("--deadline", type=float, help="seconds after which no arm starts and the running one stops")
    parser.add_argument("--toy", action="store_true", help="seconds on a CPU, for tests")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", help="internal: run ARM:SIZE:DATA in this process")
    parser.add_argument("--until", type=float, help="internal: the clock time of the deadline")
    args = parser.parse_args()
    if (args.store is None) != (args.held_out is None):
        parser.error("give --store and --held-out, or neither")
    if args.toy:
        args.sizes, args.num, args.clips, args.minutes, args.sample_batch = [32], 4, 8, 0.05, 4
    if args.no_gan:
        SHARES["pvdm"] = (0.35, 0.0, 0.65)
    return args


def main() -> None:
    """Run every arm that has no row yet; print the table, write it and the pictures."""
    args = parsed()
    args.out.mkdir(parents=True, exist_ok=True)
    data = "synthetic" if args.store is None else args.store.name
    if args.one:
        arm, size, data = args.one.split(":")
        try:
            row = run_arm(arm, int(size), data, args)
        except StoppedOnRequest:
            sys.exit(AGAIN)
        (folder(args, arm, int(size), data) / "row.json").write_text(json.dumps(row))
        return
    until = time.time() + args.deadline if args.deadline else None
    rows, worst = [], 0
    for size in args.sizes:
        stores(args, size, data)
        for arm in args.arms:
            file = folder(args, arm, size, data) / "row.json"
            if not file.exists() and (until is None or time.time() < until):
                command = [sys.executable, "-m", "benchmarks.families", *sys.argv[1:], "--one", f"{arm}:{size}:{data}"]
                timed = ["--until", str(until)] if until else []
                worst = max(worst, subprocess.run([*command, *timed], check=False).returncode)
            if not file.exists():
                print(f"{data} {size} {arm}: not finished; the same command continues", file=sys.stderr)
        files = [folder(args, arm, size, data) / "row.json" for arm in SHARES]  # of other commands too
        rows += [json.loads(file.read_text()) for file in files if file.exists()]
        sheet(args, size, data)
    write_json(args.out / f"families-{data}.json", rows, args.device)
    print(table(rows))
    sys.exit(worst)


if __name__ == "__main__":
    main()
