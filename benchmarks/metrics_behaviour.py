"""How the metrics answer to damage of growing strength: a table, one SVG and one JSON.

    python -m benchmarks.metrics_behaviour --clips DIR [--device cuda] [--num 1000] [--svg FILE] [--json FILE]

Real clips are compared with their own damaged copies, so a distance should rise with the strength from 0 on. Seeded
random I3D.
"""

from __future__ import annotations

import argparse
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.machine import write_json
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.features import Job, extract
from hpdm_core.metrics.frechet import frechet_distance
from hpdm_core.metrics.inception import inception_score
from hpdm_core.metrics.kernel import jedi_distance, kernel_video_distance
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.metrics.seams import seam_observer
from hpdm_core.metrics.sources import open_source

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
        if item.frames is None or min(item.frames.shape[1:3]) < 240:
            continue
        left = (item.frames.shape[2] - 240) // 2
        clips.append(np.ascontiguousarray(item.frames[:, 0:240:2, left : left + 240 : 2]))
        if len(clips) == num:
            break
    return clips


def measure(clips, detector, device, workers):
    """Every metric for every damage and strength, against the undamaged clips."""
    jobs = {view: Job(detector, view) for view in ("video", "static")}
    real = extract(clips, jobs, batch_size=16, device=device)
    observe = seam_observer(TILE, TILE)
    rows = []
    with ThreadPoolExecutor(workers) as pool:
        for name, damage in DAMAGES.items():
            for strength in STRENGTHS:

                def damaged(numbered, damage=damage, strength=strength):
                    index, clip = numbered
                    return damage(clip, strength, np.random.default_rng([3, index]))

                shown = list(pool.map(damaged, enumerate(clips)))
                seam = seam_value(list(pool.map(observe, range(len(shown)), shown)))
                fake = extract(shown, jobs, batch_size=16, device=device) if strength else real
                rows.append({"damage": name, "strength": strength, **values(detector, fake, real), "seam ratio": seam})
                print(".", end="", flush=True)
    print()
    return rows


def values(detector, fake, real):
    """The metrics that read features."""
    whole, static = (
        frechet_distance(fake[view].statistics.gaussian(), real[view].statistics.gaussian())
        for view in ("video", "static")
    )
    a, b = fake["video"].features, real["video"].features
    return {
        "rFVD": whole,
        "rFVD-static": static,
        "rKVD": kernel_video_distance(a, b).value,
        "rJEDi-MMD": jedi_distance(a, b).value,
        "rIS": inception_score(detector.probabilities(torch.from_numpy(a)).numpy(), min(10, len(a)), 42).value,
    }


def seam_value(rows):
    """Geometric mean over clips of the ratio of the worst axis."""
    logs = {axis: np.log(np.clip([row[axis] for row in rows], 1e-3, 1e3)) for axis in rows[0]}
    return max(float(np.exp(found.mean())) for found in logs.values())


def trend(found):
    """Whether values rise or fall with every step of strength; `flat` where they stay within 1 %."""
    steps = np.diff(found)
    if np.abs(steps).max() <= 0.01 * max(np.abs(found).max(), 1e-9):
        return "flat"
    return "rises" if (steps > 0).all() else "falls" if (steps < 0).all() else "neither"


def show(rows):
    """The rows as a Markdown table, one line per damage and metric."""
    print("| damage | metric | " + " | ".join(f"{s:g}" for s in STRENGTHS) + " | trend |")
    print("|---" * (len(STRENGTHS) + 3) + "|")
    for damage in DAMAGES:
        own = [row for row in rows if row["damage"] == damage]
        for metric in list(own[0])[2:]:
            found = [row[metric] for row in own]
            print(f"| {damage} | {metric} | " + " | ".join(f"{v:.3g}" for v in found) + f" | {trend(found)} |")


def svg(rows):
    """Small multiples: one panel per damage, one line per metric, each scaled to its own maximum over all panels."""
    metrics = [key for key in rows[0] if key not in ("damage", "strength")]
    colours = ("#1b6ca8", "#c2571a", "#3a8f4d", "#8a4fa3", "#7a6a00", "#c0306a")
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
        x, y = pad + i % 3 * (width + pad), 2 * (height + 60) + 36 + i // 3 * 18
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{legend}</text>')
    box = f"0 0 {3 * (width + pad) + pad} {2 * (height + 60) + 66}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def main():
    """Damage, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of real videos, 240 pixels high or more")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num", type=int, default=1000, help="at most so many clips, spread over the folder")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--workers", type=int, default=8, help="threads that damage clips")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    detector = build_detector(DetectorSection(name="random-i3d"), weights=None, device=args.device)
    clips = real_clips(args.clips, args.num, args.frames)
    print(f"{len(clips)} clips of {args.frames}x{SIDE}x{SIDE}")
    rows = measure(clips, detector, args.device, args.workers)
    show(rows)
    if args.svg is not None:
        args.svg.write_text(svg(rows))
    write_json(args.json, rows, args.device, clips=len(clips), frames=args.frames, side=SIDE)


if __name__ == "__main__":
    main()
