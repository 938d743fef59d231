"""Every golden number of the evaluation literature's code against ours, as a Markdown table.

    python benchmarks/metrics_golden.py --reference GOLDEN_DIR [--clips DIR] [--device cuda] [--out table.md]

Without --clips only rows that need no video are computed; with it, FVDs are also recomputed from the clips themselves.
Rows that need trained weights are listed as such. Nothing is asserted here; the tests do that.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from hpdm_core.metrics.c3d import CONVOLUTIONS, LINEARS, c3d_from
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.inception import inception_score
from hpdm_core.metrics.kernel import jedi_distance, kernel_video_distance
from hpdm_core.metrics.peer_formulas import distance_by, sqrtm_distance
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.metrics.random_weights import random_c3d_weights
from tests.golden.metrics_recipes import class_probabilities, gaussian_features, pcg, synth

FORMULAS = {
    "stylegan-v": lambda f, r: sqrtm_distance(f, r, 0),
    "fvd-comparison": lambda f, r: sqrtm_distance(f, r, 1),
    "same, float32": lambda f, r: sqrtm_distance(f, r, 1),
    "VideoGPT": lambda f, r: distance_by("float32_svd", f, r, 1),
    "tfgan": lambda f, r: distance_by("tfgan", f, r, 1),
    "exact ddof 1": lambda f, r: distance_by("exact", f, r, 1),
    "exact ddof 0": lambda f, r: distance_by("exact", f, r, 0),
}


class Table:
    """Rows of (group, quantity, expected, ours, error)."""

    def __init__(self):
        self.rows = []

    def add(self, group, what, expected, ours):
        """One number."""
        self.rows.append(
            (group, what, f"{expected:.10g}", f"{ours:.10g}", f"{abs(ours - expected) / abs(expected):.1e} rel")
        )

    def add_arrays(self, group, what, expected, ours):
        """One array, by its norm and its largest difference."""
        error = np.abs(np.asarray(ours, np.float64) - expected).max()
        self.rows.append(
            (
                group,
                what,
                f"norm {np.linalg.norm(expected):.6g}",
                f"norm {np.linalg.norm(ours):.6g}",
                f"{error:.1e} max abs",
            )
        )

    def formulas(self, group, what, expected, fake, real):
        """A distance by every peer's formula."""
        for name, value in expected.items():
            formula = next(f for prefix, f in FORMULAS.items() if name.startswith(prefix))
            self.add(group, f"{what}: {name.split(' (')[0]}", value, formula(fake, real))

    def markdown(self):
        """The table as text."""
        lines = ["| group | quantity | golden | ours | error |", "|---|---|---|---|---|"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in self.rows]) + "\n"


def detector(device, **fields):
    """Seeded I3D with the given protocol fields."""
    return build_detector(DetectorSection(name="random-i3d", **fields), weights=None, device=device)


def features(network, clips, device, batch=16):
    """Features of clips [N, D]."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(clips), batch):
            stack = torch.from_numpy(np.stack(clips[start : start + batch])).to(device)
            rows.append(network.features(stack).cpu().numpy())
    return np.concatenate(rows)


def numbers_without_video(table, reference, arrays):
    """Rows that need no video."""
    for n, expected in reference["frechet_only"]["values"].items():
        count = int(n.removeprefix("N="))
        fake, real = gaussian_features(count, 11, 0.05, 1.1), gaussian_features(count, 12, 0.0, 1.0)
        table.formulas("Fréchet, Gaussian features", n, expected, fake, real)
    for pair, expected in reference["fvd_exact_i3d"]["values"].items():
        fake, real = (arrays[f"feats__{name}"] for name in pair.split(" (")[0].split(" vs "))
        table.formulas("Fréchet, given I3D features", pair, expected, fake, real)
    fake, real = gaussian_features(512, 11, 0.05, 1.1), gaussian_features(512, 12, 0.0, 1.0)
    mmd = reference["mmd"]["values"]
    table.add(
        "MMD",
        "KVD (DIGAN)",
        next(v for k, v in mmd.items() if k.startswith("KVD")),
        kernel_video_distance(fake, real).value,
    )
    table.add(
        "MMD", "JEDi form", next(v for k, v in mmd.items() if k.startswith("JEDi")), jedi_distance(fake, real).value
    )
    inception(table, reference["inception_score"]["values"])


def inception(table, values):
    """Inception Scores of the seeded table."""
    p = class_probabilities()
    cases = {
        "stylegan-v compute_isv, all 10000, 10 splits": (p, 10, 42),
        "stylegan-v compute_isv, first 2048, 10 splits": (p[:2048], 10, 42),
        "tgan2, 10000, splits=10": (p, 10, None),
        "tgan2, first 2048, splits=1 (compute_inception_score.py loop body)": (p[:2048], 1, None),
        "tgan v1 calc_inception, 10000": (p, 1, None),
    }
    for name, case in cases.items():
        found, expected = inception_score(*case), values[name]
        if isinstance(expected, dict):
            table.add("Inception Score", f"{name.split(' (')[0]}, mean", expected["mean"], found.value)
            if expected["std"]:
                table.add("Inception Score", f"{name}, std", expected["std"], found.std)
        else:
            table.add("Inception Score", name, expected, found.value)


def logits(table, arrays, device):
    """I3D logits of every golden array."""
    ours = detector(device)
    noise = list(pcg(1234).integers(0, 256, (2, 16, 224, 224, 3), dtype=np.uint8))
    small = [synth(i, 16, 64, 64) for i in range(4)]
    wide = [synth(0, 16, 240, 320)]
    full = [synth(i) for i in range(4)]
    cases = [
        ("noise224_T16", ours, noise, ("tf", "torch")),
        ("synth224_T16", ours, full, ("tf", "torch")),
        *((f"synth224_T{t}", ours, [synth(0, t)], ("tf", "torch")) for t in (10, 17, 32, 64)),
        ("synth64_T16_tf1legacyresize", detector(device, resize="tf1_legacy"), small, ("tf",)),
        ("synth240x320_T16_tf1legacyresize", detector(device, resize="tf1_legacy"), wide, ("tf",)),
        ("synth224_T16_videogpt_eps1e-5", detector(device, eps=1e-5), full, ("torch",)),
        ("synth64_T16_halfpixel", ours, small, ("torch",)),
        ("synth240x320_T16_stretch_halfpixel", ours, wide, ("torch",)),
        ("synth64_T16_shortside_crop", detector(device, fit="crop"), small, ("torch",)),
        ("synth240x320_T16_shortside_crop", detector(device, fit="crop"), wide, ("torch",)),
        ("synth240x320_T16_shortside_crop_videogptpre", detector(device, fit="crop"), wide, ("torch",)),
    ]
    for key, network, clips, sources in cases:
        found = features(network, clips, device, batch=4)
        for source in sources:
            table.add_arrays("I3D logits", f"{source}__{key}", arrays[f"{source}__{key}"], found)


def c3d(table, arrays, device):
    """C3D preprocessing and scores."""
    network = c3d_from(random_c3d_weights(CONVOLUTIONS, LINEARS)).to(device)
    x = (
        torch.from_numpy(np.stack([synth(i, 16, 64, 64) for i in range(4)])).to(device).movedim(-1, 1).float() / 127.5
        - 1
    )
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        prepared, scores = network.preprocess(x), network(x).cpu().numpy()
    sums = prepared.double().sum(dim=(2, 3, 4)).cpu().numpy()
    for row in range(4):
        table.add(
            "C3D", f"fc8 norm of clip {row}", np.linalg.norm(arrays["c3d__fc8"][row]), np.linalg.norm(scores[row])
        )
    relative = np.linalg.norm(scores - arrays["c3d__fc8"]) / np.linalg.norm(arrays["c3d__fc8"])
    table.rows.append(("C3D", "fc8, all scores", "", "", f"{relative:.1e} rel L2"))
    table.rows.append(
        ("C3D", "preprocessing sums", "", "", f"{np.abs(sums / arrays['c3d__pre_sum'] - 1).max():.1e} rel")
    )
    corner = np.abs(prepared[:, :, :2, :3, :3].cpu().numpy() - arrays["c3d__pre_corner"]).max()
    table.rows.append(("C3D", "preprocessing corners", "", "", f"{corner:.1e} max abs"))


def windows(clips, entries, stride=2):
    """The 16-frame windows of the reference, every second pixel by default."""
    from hpdm_core.data.decode import decode_video

    found = []
    for entry in entries:
        video, _ = decode_video(clips / entry["path"])
        part = video[entry["start"] : entry["start"] + 16, 0:240:stride, 40:280:stride]
        found.append(np.ascontiguousarray(part))
    return found


def corrupted(name, clips, entries):
    """The windows damaged as the reference says."""
    return [CORRUPTIONS[name](clip, entry["index"]) for clip, entry in zip(clips, entries, strict=True)]


def blur(clip, index):
    """Two passes of the binomial filter in integers."""
    kernel = np.array([1, 4, 6, 4, 1])
    for _ in range(2):
        for axis in (1, 2):
            pad = [(0, 0)] * 4
            pad[axis] = (2, 2)
            wide = np.pad(clip.astype(np.int64), pad, mode="edge")
            size = clip.shape[axis]
            parts = (k * np.take(wide, range(i, i + size), axis) for i, k in enumerate(kernel))
            total = sum(parts, np.zeros(clip.shape, np.int64))
            clip = total if axis == 1 else (total + 128) // 256
    return clip.astype(np.uint8)


CORRUPTIONS = {
    "noise": lambda v, i: np.clip(np.rint(v + pcg(77, i).normal(0, 25, size=v.shape)), 0, 255).astype(np.uint8),
    "shuffle": lambda v, i: v[pcg(88, i).permutation(16)],
    "static": lambda v, i: np.repeat(v[:1], 16, axis=0),
    "blur": blur,
}


def from_clips(table, reference, arrays, clips, device):
    """Features and FVDs recomputed from the clips."""
    a, b = reference["windows_A"], reference["windows_B"]
    sets = {"A": windows(clips, a), "B": windows(clips, b), "A240": windows(clips, a, stride=1)}
    sets |= {f"A_{name}": corrupted(name, sets["A"], a) for name in CORRUPTIONS}
    sets["synth_slow"] = [synth(i, 16, 64, 64) for i in range(512)]
    sets["synth_fast"] = [synth(100000 + i, 16, 64, 64, fast=True) for i in range(512)]
    exact = {name: features(detector(device), part, device) for name, part in sets.items()}
    for name, found in exact.items():
        table.add_arrays("I3D features from clips", name, arrays[f"feats__{name}"], found)
    for pair, expected in reference["fvd_exact_i3d"]["values"].items():
        fake, real = (exact[name] for name in pair.split(" (")[0].split(" vs "))
        table.formulas("FVD from clips", pair, expected, fake, real)
    pipelines = [{"eps": 1e-5}, {"resize": "tf1_legacy"}, {}]
    for fields, (title, pairs) in zip(pipelines, reference["fvd_other_pipelines"].items(), strict=True):
        network = detector(device, **fields)
        for pair, expected in pairs.items():
            names = [name.removesuffix("128") for name in pair.split(" (")[0].split(" vs ")]
            fake, real = (features(network, sets[name][:128], device) for name in names)
            table.formulas(f"FVD from clips, {title.split(',')[0]}", pair, expected, fake, real)


def needs_trained_weights(table, reference):
    """Rows that cannot be checked without trained weights."""
    for name, value in reference["published"].items():
        shown = json.dumps(value)
        shown = shown if len(shown) < 60 else shown[:57] + "..."
        table.rows.append(("published", name, shown.replace("|", "/"), "needs the trained weights", ""))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, help="folder of fvd_reference.json and the arrays")
    parser.add_argument("--clips", type=Path, help="folder of the real clips")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    reference = json.loads((args.reference / "fvd_reference.json").read_text())
    with np.load(args.reference / "i3d_seeded_golden.npz") as archive:
        arrays = dict(archive)
    table = Table()
    logits(table, arrays, args.device)
    c3d(table, arrays, args.device)
    numbers_without_video(table, reference, arrays)
    if args.clips is not None:
        from_clips(table, reference, arrays, args.clips, args.device)
    needs_trained_weights(table, reference)
    text = table.markdown()
    if args.out is not None:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
