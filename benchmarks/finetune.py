"""Does fine-tuning a coarse generator beat training all levels from scratch? (HPDM §4; specification, claim 12)

    python -m benchmarks.finetune --seeds 2 --base-steps 2000 --steps 300 --out results/finetune

Per seed: a base of level 0 alone; the base grown to three levels and trained jointly for `--steps`; the same model
from scratch for as many steps. Both are scored at a third, two thirds and the end of their steps, at every level,
against procedural clips that none has seen. Finished runs and scores are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation import SIZE, prepare
from benchmarks.curves import alone
from benchmarks.levels import RandomFeatures, real_levels, rfd, sample_levels
from benchmarks.machine import write_json
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.store import VideoStore
from hpdm_core.families.hpdm.config import HpdmModel
from hpdm_core.families.registry import load_run_config
from hpdm_core.families.weights import checkpoint_dirs, load_model
from hpdm_core.pyramid.geometry import Pyramid
from hpdm_core.report.chart import Series, line_chart
from hpdm_core.training.finetune import finetune
from hpdm_core.training.run import train

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BASE = ("model.video=[4,16,16]", "model.levels_per_block=[1,1,1,1,1,1]", "data.frame_stride=4")
"""Level 0 alone: every fourth frame at a quarter of the size, as the grown model's level 0 sees it."""


def config_of(seed: int, steps: int, every: int, *more: str) -> RunConfig:
    """The ablation's small HPDM, trained for `steps`."""
    here = () if DEVICE == "cuda" else ("train.precision=fp32",)
    length = (f"train.max_steps={steps}", f"train.checkpoint_every_steps={every}", f"train.seed={seed}")
    return load_run_config("ucf101-mini", (*SIZE, *length, "train.keep_checkpoints=3", *here, *more))


def run_seed(seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train base, grown and scratch; score the checkpoints."""
    store, root, every = args.out / "train", args.out / f"seed-{seed}", max(1, args.steps // 3)
    grown = config_of(seed, args.steps, every, "model.fusion_init=identity")
    assert isinstance(grown.model, HpdmModel)
    pyramid = grown.model.pyramid
    minutes = {}
    for name in ("base", "grown", "scratch"):
        started = time.perf_counter()
        if name == "base":
            train(config_of(seed, args.base_steps, args.base_steps, *BASE), store, root / name, device=DEVICE)
        elif name == "grown":
            finetune(root / "base", grown, store, root / name, device=DEVICE)
        else:
            train(config_of(seed, args.steps, every), store, root / name, device=DEVICE)
        minutes[name] = (time.perf_counter() - started) / 60
    rows = []
    for name in ("base", "grown", "scratch"):
        for checkpoint in checkpoint_dirs(root / name):
            scores = score(checkpoint, args, pyramid)
            rows.append({"arm": name, "seed": seed, "step": int(checkpoint.name[5:]), "rfd_by_level": scores,
                         "minutes": minutes[name]})  # fmt: skip
    return rows


def score(checkpoint: Path, args: argparse.Namespace, pyramid: Pyramid) -> list[float]:
    """rFD at each level that the checkpoint makes."""
    done = args.out / f"{checkpoint.parents[1].name}-{checkpoint.parents[2].name}-{checkpoint.name}.json"
    if done.exists():
        return json.loads(done.read_text())
    features = RandomFeatures(DEVICE)
    reals, _, _ = real_levels(VideoStore.open(args.out / "test"), pyramid, args.num)
    model = load_model(checkpoint, device=DEVICE)
    fakes = sample_levels(model, range(args.num), batch=64, steps=[32, 16, 16])
    scores = [rfd(features(real), features(fake)) for real, fake in zip(reals, fakes, strict=False)]
    done.write_text(json.dumps(scores))
    return scores


def chart(rows: list[dict[str, Any]]) -> str:
    """The finest level's distance against steps, grown beside from scratch, a line for each seed."""
    lines = []
    for arm in ("grown", "scratch"):
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
            points = [row["rfd_by_level"][-1] for row in own]
            lines.append(Series(f"{arm} seed {seed}", [row["step"] for row in own], points))
    return alone(line_chart(lines, title="rFD of the finest level", x_label="steps of all levels", log=True))


def main() -> None:
    """Make the stores, run every seed, print the table, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--base-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--num", type=int, default=512, help="clips on each side of a distance")
    parser.add_argument("--clips", type=int, default=2000, help="training clips")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare(args.out / "train", args.clips, seed=1)
    prepare(args.out / "test", args.num, seed=2)
    rows = [row for seed in range(args.seeds) for row in run_seed(seed, args)]
    write_json(args.out / "finetune.json", rows)
    (args.out / "finetune.svg").write_text(chart(rows))
    for row in rows:
        scores = "  ".join(f"{value:9.3f}" for value in row["rfd_by_level"])
        where = f"{row['arm']:8s} seed {row['seed']} step {row['step']:5d}"
        print(f"{where}  rFD by level {scores}  {row['minutes']:.1f} min")


if __name__ == "__main__":
    main()
