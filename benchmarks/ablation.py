"""Ablations on procedural clips: train arms that differ in one switch, same steps and data, Fréchet per level.

    python -m benchmarks.ablation --arms deep,shallow,none --seeds 2 --steps 2500 --out results/ablation

Every run is a process of its own, `--jobs` at a time. On one GPU take one: processes that share it take turns, and nine
together were each eight times slower than alone. The clips are made on the spot; scoring uses clips of another seed
that no arm has seen. A finished run's scores are kept, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.levels import RandomFeatures, hpdm_of, real_levels, rfd, sample_levels
from benchmarks.machine import write_json

ARMS: dict[str, tuple[str, ...]] = {
    "deep": (),
    "shallow": ("model.fusion=shallow",),
    "none": ("model.fusion=none",),
    "detached": ("model.context_gradient=false",),
    "no-coordinates": ("model.coordinates=false",),
    "dense": ("model.levels_per_block=[3,3,3,3,3,3]",),
    "self-conditioning": ("model.self_conditioning=0.9",),
    "growth-1": ("model.input_scale_growth=1.0",),
    "growth-2.8": ("model.input_scale_growth=2.83",),
}
"""Arm to what it changes."""

SIZE = (
    "model.video=[16,64,64]", "model.patch=[4,16,16]", "model.token=[1,2,2]", "model.token_dim=256",
    "model.latent_dim=256", "model.num_latents=128", "model.input_scale=1.0", "train.batch_size=64",
    "train.optimizer.lr=5e-4", "train.optimizer.warmup_steps=100", "train.ema.half_life_videos=8000",
    "train.compile=false", "data.workers=3",
)  # fmt: skip
"""The specification's small setting on top of ucf101-mini: 3 levels of 4x16x16 to 16x64x64, tokens of 1x2x2.

Not compiled: a run is shorter than its compilation, and on a GPU a CUDA graph already saves the launches.
"""


def run_arm(arm: str, seed: int, steps: int, num: int, root: Path) -> dict[str, Any]:
    """Train one arm and score it at every level."""
    from hpdm_core.data.store import VideoStore
    from hpdm_core.families.registry import load_run_config
    from hpdm_core.families.weights import load_model
    from hpdm_core.report.reading import read_log
    from hpdm_core.training.run import train

    device = "cuda" if torch.cuda.is_available() else "cpu"
    length = (f"train.max_steps={steps}", f"train.checkpoint_every_steps={steps}", f"train.seed={seed}")
    here = () if device == "cuda" else ("train.precision=fp32",)
    config = load_run_config("ucf101-mini", (*SIZE, *ARMS[arm], *length, *here))
    out = root / f"{arm}-{seed}"
    train(config, root / "train", out, device=device)
    model = load_model(out, device=device)
    features = RandomFeatures(device)
    reals, _, _ = real_levels(VideoStore.open(root / "test"), hpdm_of(model).pyramid, num)
    fakes = sample_levels(model, range(num), batch=64, steps=[32, 16, 16])
    scores = [rfd(features(real), features(fake)) for real, fake in zip(reals, fakes, strict=True)]
    tail = list(read_log(out))[-20:]
    losses = {k: sum(r["loss_levels"][k] for r in tail) / len(tail) for k in tail[-1]["loss_levels"]}
    return {"arm": arm, "seed": seed, "steps": steps, "num": num, "rfd_by_level": scores, "loss_by_level": losses}


def main() -> None:
    """Make the stores, start every arm and seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="deep,shallow,none")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--num", type=int, default=512, help="clips on each side of a distance")
    parser.add_argument("--clips", type=int, default=2000, help="training clips")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", help="internal: run ARM:SEED in this process")
    args = parser.parse_args()
    if args.one:
        arm, _, seed = args.one.partition(":")
        result = run_arm(arm, int(seed), args.steps, args.num, args.out)
        (args.out / f"{arm}-{seed}.json").write_text(json.dumps(result))
        return
    prepare(args.out / "train", args.clips, seed=1)
    prepare(args.out / "test", args.num, seed=2)
    pairs = [f"{arm}:{seed}" for arm in args.arms.split(",") for seed in range(args.seeds)]
    shared = [f"--steps={args.steps}", f"--num={args.num}", f"--out={args.out}"]
    command = [sys.executable, "-m", "benchmarks.ablation", *shared]
    done = [args.out / f"{pair.replace(':', '-')}.json" for pair in pairs]
    todo = [pair for pair, path in zip(pairs, done, strict=True) if not path.exists()]
    with ThreadPoolExecutor(args.jobs) as pool:
        codes = list(pool.map(lambda pair: subprocess.run([*command, "--one", pair], check=False).returncode, todo))
    results = [json.loads(path.read_text()) for path in done if path.exists()]
    write_json(args.out / "ablation.json", results)
    for row in results:
        scores = "  ".join(f"{score:9.3f}" for score in row["rfd_by_level"])
        losses = "  ".join(f"{value:7.3f}" for value in row["loss_by_level"].values())
        print(f"{row['arm']:18s} seed {row['seed']}  rFD by level {scores}   loss by level {losses}")
    sys.exit(max(codes, default=0))


def prepare(out: Path, clips: int, *, seed: int) -> None:
    """A store of procedural clips, by the command that users type."""
    command = ["prepare-data", "--source", "synthetic", "--num", str(clips), "--frames", "24", "--size", "64x64"]
    subprocess.run([sys.executable, "-m", "hpdm_cli", *command, "--seed", str(seed), "--out", str(out)], check=True)


if __name__ == "__main__":
    main()
