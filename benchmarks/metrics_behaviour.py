"""How the metrics answer to damage of growing strength, and how FVD falls with N: one SVG and one JSON.

    python benchmarks/metrics_behaviour.py --clips DIR [--device cuda] [--num 128] [--svg FILE] [--json FILE]

Every clip is compared with its own damaged copy, so a metric should rise with the strength from 0 on.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.features import Job, extract
from hpdm_core.metrics.frechet import frechet_from_features
from hpdm_core.metrics.interval import frechet_limit
from hpdm_core.metrics.kernel import kernel_video_distance
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.metrics.seams import seam_observer
from hpdm_core.metrics.sources import open_source
from tests.golden.metrics_recipes import synth

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIDE = 120
TILE = (64, 40, 40)


def to_bytes(values):
    """Floats to uint8, rounded and clamped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def noise(clip, s, rng):
    """Gaussian noise, up to 50 levels."""
    return to_bytes(clip + rng.normal(0, 50 * s, clip.shape))


def blur(clip, s, rng):
    """Gaussian blur, up to 4 pixels."""
    return to_bytes(ndimage.gaussian_filter(clip.astype(np.float32), (0, 4 * s, 4 * s, 0))) if s else clip


def compression(clip, s, rng):
    """JPEG of each frame, from quality 95 down to 5."""
    if s == 0:
        return clip
    frames = []
    for frame in clip:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="JPEG", quality=round(95 - 90 * s))
        frames.append(np.asarray(Image.open(buffer)))
    return np.stack(frames)


def shuffle(clip, s, rng):
    """A share `s` of the frames changes places."""
    moved = rng.permutation(len(clip))[: round(s * len(clip))]
    order = np.arange(len(clip))
    order[np.sort(moved)] = moved
    return clip[order]


def freeze(clip, s, rng):
    """The last share `s` of the clip stands still."""
    last = len(clip) - 1 - round(s * (len(clip) - 1))
    return clip[np.minimum(np.arange(len(clip)), last)]


def seams(clip, s, rng):
    """Each tile of 40x40 gets its own brightness."""
    shift = np.kron(rng.normal(0, 25 * s, (SIDE // 40, SIDE // 40)), np.ones((40, 40)))
    return to_bytes(clip + shift[None, :, :, None])


DAMAGES = {
    "noise": noise,
    "blur": blur,
    "compression": compression,
    "frame shuffle": shuffle,
    "freeze": freeze,
    "tile seams": seams,
}


def real_clips(folder, num, frames=16):
    """Centre squares of `num` clips spread over the folder, 120x120."""
    source = open_source(folder)
    clips = []
    for item in source.clips(
        range(0, len(source), max(1, len(source) // num)), lambda i, n: range(frames) if n >= frames else None, None
    ):
        if item.frames is None or item.frames.shape[1] < 240:
            continue
        left = (item.frames.shape[2] - 240) // 2
        clips.append(np.ascontiguousarray(item.frames[:, 0:240:2, left : left + 240 : 2]))
        if len(clips) == num:
            break
    return clips


def measure(clips, detector, device):
    """Every metric for every damage and strength, against the undamaged clips."""
    jobs = {view: Job(detector, view) for view in ("video", "static")}
    real = extract(clips, jobs, batch_size=16, device=device)
    observe = seam_observer(TILE, TILE)
    rows = []
    for name, damage in DAMAGES.items():
        for strength in STRENGTHS:
            rng = np.random.default_rng(3)
            damaged = [damage(clip, strength, rng) for clip in clips]
            fake = extract(damaged, jobs, batch_size=16, device=device) if strength else real
            found = {
                "rFVD": frechet_from_features(fake["video"].features, real["video"].features),
                "rKVD": kernel_video_distance(fake["video"].features, real["video"].features).value,
                "rFVD-static": frechet_from_features(fake["static"].features, real["static"].features),
                "seam ratio": seam_value(observe, damaged),
            }
            rows.append({"damage": name, "strength": strength, **found})
            print(rows[-1], flush=True)
    return rows


def seam_value(observe, clips):
    """Geometric mean over clips of the ratio of the worst axis."""
    rows = [observe(i, clip) for i, clip in enumerate(clips)]
    logs = {axis: np.log(np.clip([row[axis] for row in rows], 1e-3, 1e3)) for axis in rows[0]}
    return max(float(np.exp(values.mean())) for values in logs.values())


def limits(detector, device, counts):
    """FVD and its limit on Gaussians and on procedural clips of one distribution: the truth is 0."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((400, 400)) * 0.5 ** (np.arange(400) / 40)[None, :] / np.sqrt(400) * 3
    most = max(counts)
    sets = {"Gaussian": [rng.standard_normal((most, 400)) @ mixing.T for _ in range(2)]}
    if device.startswith("cuda"):
        job = {"video": Job(detector)}
        sets["procedural"] = [
            extract((synth(offset + i, 16, 64, 64) for i in range(most)), job, batch_size=32, device=device)[
                "video"
            ].features
            for offset in (0, 10**6)
        ]
    rows = []
    for name, (a, b) in sets.items():
        for n in counts:
            limit = frechet_limit(a[:n], b[:n])
            row = {"set": name, "n": n, "fvd": frechet_from_features(a[:n], b[:n])}
            if limit is not None:
                row |= {"limit": limit.value, "standard_error": limit.standard_error, "rough": limit.rough}
            rows.append(row)
            print(row, flush=True)
    return rows


def svg(rows):
    """Small multiples: one panel per damage, one line per metric, each scaled to its own maximum over all panels."""
    metrics = [key for key in rows[0] if key not in ("damage", "strength")]
    colours = ("#1b6ca8", "#c2571a", "#3a8f4d", "#8a4fa3")
    top = {m: max(r[m] for r in rows) for m in metrics}
    width, height, pad = 230, 150, 34
    parts = []
    for number, damage in enumerate(DAMAGES):
        x0, y0 = pad + (number % 3) * (width + pad), 40 + (number // 3) * (height + 60)
        parts.append(f'<rect x="{x0}" y="{y0}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>')
        parts.append(f'<text x="{x0}" y="{y0 - 6}">{damage}</text>')
        parts.append(f'<text x="{x0 + width}" y="{y0 + height + 14}" text-anchor="end" fill="#777">strength</text>')
        for metric, colour in zip(metrics, colours, strict=True):
            points = " ".join(
                f"{x0 + r['strength'] * width:.1f},{y0 + height - max(r[metric], 0) / top[metric] * height:.1f}"
                for r in rows
                if r["damage"] == damage
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for i, (metric, colour) in enumerate(zip(metrics, colours, strict=True)):
        legend = f"{metric} (max {top[metric]:.3g})"
        parts.append(f'<text x="{pad + i * 200}" y="{2 * (height + 60) + 36}" fill="{colour}">{legend}</text>')
    box = f"0 0 {3 * (width + pad) + pad} {2 * (height + 60) + 50}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def main():
    """Run everything that the options allow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--counts", default="256,512,1024,2048,4096")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    detector = build_detector(DetectorSection(name="random-i3d"), weights=None, device=args.device)
    damages = measure(real_clips(args.clips, args.num, args.frames), detector, args.device)
    limit = limits(detector, args.device, [int(n) for n in args.counts.split(",")])
    if args.svg is not None:
        args.svg.write_text(svg(damages))
    if args.json is not None:
        args.json.write_text(json.dumps({"damages": damages, "limits": limit}, indent=2) + "\n")


if __name__ == "__main__":
    main()
