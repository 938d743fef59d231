"""FVD and its limit for N -> infinity where the truth is 0: two samples of one distribution, against N.

    python -m benchmarks.metrics_limit [--device cuda] [--counts 256,512,1024,2048] [--clips 2048] [--json FILE]

Twice --clips procedural clips (16x64x64, seeded random I3D) are drawn from one distribution; each N takes as many
disjoint pairs of samples as they hold (32 at most), so that a row's mean and spread are measured. The same for
Gaussian features of that width. Without a GPU take few clips and the first features only, for example
--frames 9 --clips 96 --width 16 --counts 12,16,24,32,48,96.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.machine import write_json
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.features import Job, extract
from hpdm_core.metrics.frechet import frechet_from_features
from hpdm_core.metrics.interval import frechet_limit
from hpdm_core.metrics.protocol import DetectorSection
from tests.golden.metrics_recipes import synth

MOST_PAIRS = 32
OTHER_SIDE = 10**6
"""First index of the second side's clips: far from the first side's, in the same distribution."""


def procedural_features(clips, frames, device, batch):
    """Features [clips, 400] of both sides: drifting waves with moving squares, every clip its own seed."""
    job = {"video": Job(build_detector(DetectorSection(name="random-i3d"), weights=None, device=device))}

    def features(first):
        made = (synth(first + i, frames, 64, 64) for i in range(clips))
        return extract(made, job, batch_size=batch, device=device)["video"].features

    return features(0), features(OTHER_SIDE)


def gaussian_features(clips, width):
    """Features [clips, width] of both sides, with a spectrum that falls like that of real ones."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((width, width)) * 0.5 ** (np.arange(width) / 40) / np.sqrt(width) * 3
    fake, real = (rng.standard_normal((clips, width)) @ mixing.T for _ in range(2))
    return fake, real


def rows_of(name, fake, real, counts):
    """One row per N: means over disjoint pairs of samples, the spread of the estimate, and how often it held 0."""
    rows = []
    for n in counts:
        pairs = [(fake[i : i + n], real[i : i + n]) for i in range(0, len(fake) - n + 1, n)][:MOST_PAIRS]
        plain = np.array([frechet_from_features(*pair) for pair in pairs])
        row = {"set": name, "n": n, "pairs": len(pairs), "fvd": plain.mean()}
        # All pairs are of n rows and of one width: every pair has a limit or none has.
        limits = [limit for pair in pairs if (limit := frechet_limit(*pair)) is not None]
        if limits:
            values = np.array([limit.value for limit in limits])
            row |= {
                "limit": values.mean(),
                "spread": values.std(ddof=1) if len(pairs) > 1 else None,
                "standard_error": float(np.mean([limit.standard_error for limit in limits])),
                "interval_holds_0": float(np.mean([limit.ci95[0] <= 0 <= limit.ci95[1] for limit in limits])),
                "rough": limits[0].rough,
            }
        else:
            row["forced_line"] = float(np.mean([line_through_halves(*pair) for pair in pairs]))
        rows.append(row)
    return rows


def line_through_halves(fake, real):
    """What a line in 1/N through the set and its two halves would say where hpdm refuses to draw one."""
    half = len(fake) // 2
    parts = [frechet_from_features(fake[s], real[s]) for s in (slice(half), slice(half, 2 * half))]
    return 2 * frechet_from_features(fake, real) - np.mean(parts)


def show(rows, width):
    """The rows as a table."""
    print(f"features: {width}")
    print(f"{'set':<11}{'N':>6}{'pairs':>7}{'FVD':>11}{'limit':>11}{'spread':>9}{'its SE':>9}{'holds 0':>9}")
    for row in rows:
        if "limit" in row:
            spread = "" if row["spread"] is None else f"{row['spread']:.3g}"
            tail = f"{row['limit']:>11.4g}{spread:>9}{row['standard_error']:>9.3g}{row['interval_holds_0']:>9.0%}"
            tail += "  rough" if row["rough"] else ""
        else:
            tail = f"  none: N < {width} (a line through halves would say {row['forced_line']:.4g})"
        print(f"{row['set']:<11}{row['n']:>6}{row['pairs']:>7}{row['fvd']:>11.4g}{tail}")


def main():
    """Measure both sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=2048, help="clips of each side")
    parser.add_argument("--counts", default="256,320,512,1024,2048")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--width", type=int, default=400, help="use the first features only")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    counts = [int(n) for n in args.counts.split(",")]
    if max(counts) > args.clips or args.width > 400:
        parser.error("a count is at most --clips, and --width at most 400")
    rows = rows_of("Gaussian", *gaussian_features(args.clips, args.width), counts)
    fake, real = procedural_features(args.clips, args.frames, args.device, args.batch)
    rows += rows_of("procedural", fake[:, : args.width], real[:, : args.width], counts)
    show(rows, args.width)
    write_json(args.json, rows, device=args.device, clips=args.clips, frames=args.frames, width=args.width)


if __name__ == "__main__":
    main()
