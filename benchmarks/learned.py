"""Did a run learn its data? Samples against held-out clips, beside what a model must beat.

    python -m benchmarks.learned --run runs/mini --train data/mini-train --test data/mini-test --out results/learned

Rows: the model; the same network untrained; the training set's mean frame; the model's samples with shuffled
classes; training clips (what a perfect memory would score). The class-aware column sees features and class together.
Also writes each sample's nearest training clip, and a grid of samples at every level.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.levels import RandomFeatures, hpdm_of, real_levels, rfd, sample_levels, with_classes
from benchmarks.machine import machine_facts
from hpdm_core.data.store import VideoStore
from hpdm_core.data.write import write_gif
from hpdm_core.families.registry import build_family
from hpdm_core.families.weights import LoadedModel, load_model


def untrained(model: LoadedModel, device: str) -> LoadedModel:
    """The same network with its initial weights."""
    torch.manual_seed(0)
    family = build_family(model.config).to(device).eval().requires_grad_(False)
    return LoadedModel(family, model.config, model.header, model.path, model.sha256)


def main() -> None:
    """Sample, score, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--chunk", help="tiles per network call, by level; on a GPU the batch, then 64")
    parser.add_argument("--steps", default="32,16,8")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(args.run, device=device)
    pyramid, steps = hpdm_of(model).pyramid, [int(s) for s in args.steps.split(",")]
    train_store, test_store = VideoStore.open(args.train), VideoStore.open(args.test)
    # Both splits number the classes of the whole source alike; held-out clips of unseen classes are left out.
    seen = {c.label for c in train_store.clips if c.label is not None and c.num_frames >= pyramid.video[0]}
    reals, labels, _ = real_levels(test_store, pyramid, args.num, classes=sorted(seen))
    knowns, known_labels, known_clips = real_levels(train_store, pyramid, 3 * len(train_store.clips), seed=1)
    same = [i for i, label in enumerate(known_labels) if label in set(labels)]
    options: dict[str, Any] = {"steps": steps}
    if args.chunk:
        options["chunk"] = [int(n) for n in args.chunk.split(",")]
    fakes = sample_levels(model, range(args.num), labels, batch=args.batch, **options)
    blank = sample_levels(untrained(model, device), range(args.num), labels, batch=args.batch, **options)
    shuffled = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))]
    features, rows = RandomFeatures(device), {}
    classes = len(train_store.classes)
    for level, real in enumerate(reals):
        mean = np.broadcast_to(knowns[level].mean(axis=(0, 1)).round().astype(np.uint8), real.shape)
        f = {name: features(v) for name, v in
             (("real", real), ("model", fakes[level]), ("untrained", blank[level]), ("mean frame", mean),
              ("training clips", knowns[level][same][: args.num]))}  # fmt: skip
        unit = float(np.sqrt(f["real"].var(axis=0).sum() / (1 - np.square(np.bincount(labels) / len(labels)).sum())))
        joint = with_classes(f["real"], labels, classes, unit)
        near = [known_labels[i] for i in same[: args.num]]
        for name, given in (("model", labels), ("untrained", labels), ("mean frame", labels), ("training clips", near)):
            aware = rfd(joint, with_classes(f[name], given, classes, unit))
            rows.setdefault(name, []).append((rfd(f["real"], f[name]), aware))
        shuffle = rfd(joint, with_classes(f["model"], shuffled, classes, unit))
        rows.setdefault("shuffled classes", []).append((rows["model"][-1][0], shuffle))
    for name, scores in rows.items():
        print(
            f"{name:18s} "
            + "   ".join(f"level {i}: {a:9.3f} (class-aware {b:9.3f})" for i, (a, b) in enumerate(scores))
        )
    neighbours = nearest(features(fakes[-1]), features(knowns[-1]))
    (args.out / "learned.json").write_text(
        json.dumps({"machine": machine_facts(), "num": args.num, "steps": steps, "rfd_and_class_aware": rows,
                    "held_out_clips": len({c.group for c in test_store.clips}),
                    "nearest": [train_store.clips[known_clips[n]].id for n in neighbours]}, indent=1)
    )  # fmt: skip
    save_grid(args.out / "levels.png", [v[:6] for v in fakes])
    save_grid(args.out / "nearest.png", [fakes[-1][:6], knowns[-1][neighbours[:6]]])
    rows_of_four = fakes[-1][:8].reshape(2, 4, *fakes[-1].shape[1:])
    wall = np.concatenate([np.concatenate(list(row), axis=2) for row in rows_of_four], axis=1)
    write_gif(args.out / "samples.gif", wall, fps=12.0)


def nearest(a: np.ndarray, b: np.ndarray) -> list[int]:
    """For each row of a, the index of the closest row of b."""
    return np.square(a[:, None] - b[None]).sum(-1).argmin(1).tolist()


def save_grid(path: Path, groups: list[np.ndarray], frames: int = 6, side: int = 96) -> None:
    """Rows: for each video, one line of frames per group (the same video at every level, or beside its neighbour)."""
    lines = []
    for i in range(len(groups[0])):
        for group in groups:
            index = np.linspace(0, group.shape[1] - 1, frames).round().astype(int)
            tiles = [Image.fromarray(group[i, t]).resize((side, side), Image.Resampling.NEAREST) for t in index]
            lines.append(np.concatenate([np.asarray(t) for t in tiles], axis=1))
    Image.fromarray(np.concatenate(lines, axis=0)).save(path, optimize=True)


if __name__ == "__main__":
    main()
