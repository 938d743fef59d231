"""Speed, memory and precision of feature extraction, the cost of scoring, and 10,000 clips end to end.

    python -m benchmarks.metrics [--device cuda] [--store STORE] [--clips N] [--only scoring,end_to_end] [--json FILE]

End to end reads a raw store of 16x256x256, by default one made here of --distinct procedural clips, which are read
again until there are --clips. Each precision runs twice: with the store in the page cache, and after the kernel was
asked to drop it. Seeded random weights: the arithmetic is that of the trained network.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import write_json
from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.features import FeatureSet, Job, extract, frame_rule
from hpdm_core.metrics.frechet import frechet_distance, frechet_from_features
from hpdm_core.metrics.interval import frechet_limit, frechet_standard_error
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.metrics.sources import Clip, StoreSource
from hpdm_core.rng import numpy_stream
from tests.golden.metrics_recipes import synth


def network(precision, device):
    """Seeded I3D of one precision."""
    return build_detector(DetectorSection(name="random-i3d", precision=precision), weights=None, device=device)


def random_clips(count, size=256):
    """`count` clips of 16 frames: one block of noise, rolled, so that making them costs little."""
    block = numpy_stream(0, "benchmark").integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    return (np.roll(block, 7 * i, axis=1) for i in range(count))


def features_only(precision, device, batch, seconds=4.0):
    """Clips per second of the network with its resize, on clips that are already on the device."""
    detector = network(precision, device)
    clips = torch.from_numpy(np.stack(list(random_clips(batch)))).to(device)
    with torch.inference_mode():
        detector.features(clips).cpu()
        detector.features(clips).cpu()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            detector.features(clips).cpu()
            count += batch
    return count / (time.perf_counter() - start)


def precision_shift(device, count):
    """rFVD between slow and fast synthetic clips by precision, as a share of the fp32 value."""
    slow = [synth(i, 16, 64, 64) for i in range(count)]
    fast = [synth(100000 + i, 16, 64, 64, fast=True) for i in range(count)]
    found = {}
    for precision in ("fp32", "tf32", "bf16"):
        job = {"video": Job(network(precision, device))}
        a, b = (extract(clips, job, batch_size=32, device=device)["video"].features for clips in (fast, slow))
        found[precision] = frechet_from_features(a, b)
    return [{"precision": key, "rfvd": value, "shift": value / found["fp32"] - 1} for key, value in found.items()]


def memory(device, counts):
    """Peak memory after scoring growing numbers of clips."""
    rows = []
    job = {"video": Job(network("fp32", device))}
    for count in counts:
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        extract(random_clips(count, 64), job, batch_size=8, device=device)
        gpu = torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else 0.0
        rows.append(
            {"clips": count, "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "gpu_mib": gpu}
        )
    return rows


def score(fake, real):
    """Seconds of each part of an FVD from features: moments and factors, distance, interval, limit."""
    clock = [time.perf_counter()]
    a, b = fake.statistics.gaussian(), real.statistics.gaussian()
    clock.append(time.perf_counter())
    frechet_distance(a, b)
    clock.append(time.perf_counter())
    frechet_standard_error(fake.features, real.features, a, b)
    clock.append(time.perf_counter())
    frechet_limit(fake.features, real.features)
    clock.append(time.perf_counter())
    return dict(zip(("moments_s", "distance_s", "interval_s", "limit_s"), np.diff(clock).tolist(), strict=True))


def scoring(clips, width):
    """`score` on features of `clips` rows and `width` columns whose spectrum falls as that of real ones."""
    rng = np.random.default_rng(0)
    falling = np.float32(0.5 ** (np.arange(width) / 40) + 1e-3)
    mixing = rng.standard_normal((width, width), dtype=np.float32) * falling / width**0.5
    sides = [rng.standard_normal((clips, width), dtype=np.float32) @ mixing.T for _ in range(2)]
    return {"clips": clips, "width": width, "threads": torch.get_num_threads(), **score(*map(feature_set, sides))}


def feature_set(rows):
    """A table of features as `extract` gives it."""
    found = FeatureSet()
    found.add(rows)
    return found


def make_store(folder, distinct):
    """A raw store of procedural clips of 16 x 256 x 256."""
    scan = scan_source(SourceOptions(kind="synthetic", num_clips=distinct, num_frames=16))
    prepare_store(scan, folder, Recipe(((256, 256),), "raw"), PrepareOptions())
    return folder


def set_page_cache(store, keep):
    """Read every byte of a store once, or ask the kernel to drop what it holds of it."""
    for path in sorted(store.rglob("*.npy")):
        with path.open("rb") as file:
            if keep:
                while file.read(1 << 24):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def frames_of(clip: Clip) -> np.ndarray:
    """The frames of a clip of a store whose videos are all long enough."""
    assert clip.frames is not None, f"{clip.name} has only {clip.video_frames} frames"
    return clip.frames


def end_to_end(store, clips, precision, device, workers, batch, cached):
    """Seconds from opening the store to FVD with interval and limit: `clips` generated clips, as many real features.

    The real side is the same features, slightly disturbed: what a cache of real features would hold.
    """
    detector = network(precision, device)
    with torch.inference_mode():
        detector.features(torch.zeros(batch, 16, 256, 256, 3, dtype=torch.uint8, device=device)).cpu()
    set_page_cache(store, cached)
    start = time.perf_counter()
    source = StoreSource(store)
    order = itertools.islice(itertools.cycle(range(len(source))), clips)
    taken = map(frames_of, source.clips(order, frame_rule(16, 1, "first", 0), None, workers))
    fake = extract(taken, {"video": Job(detector)}, batch_size=batch, device=device)["video"]
    features_s = time.perf_counter() - start
    noise = numpy_stream(0, "benchmark/real").standard_normal(fake.features.shape, dtype=np.float32)
    real = feature_set(fake.features + 0.1 * fake.features.std(axis=0) * noise)
    parts = score(fake, real)
    return {
        "precision": precision,
        "page_cache": "held the store" if cached else "dropped beforehand",
        "clips": clips,
        "distinct": len(source),
        "features_s": features_s,
        "clips_per_s": clips / features_s,
        "total_s": features_s + sum(parts.values()),
        **parts,
    }


def show(title, rows):
    """Print rows as aligned columns, numbers to four digits."""
    print(f"\n{title}")
    cells = [list(rows[0])] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


PARTS = ("features", "precision", "memory", "scoring", "end_to_end")


def main():
    """Run the parts asked for; without a GPU, small versions of them and no precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default=",".join(PARTS), help="comma list of " + ", ".join(PARTS))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--distinct", type=int, default=768, help="clips of the store that is made here")
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gpu, only = args.device.startswith("cuda"), args.only.split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    precisions = ("fp32", "tf32", "bf16") if gpu else ("fp32",)
    result = {"device": args.device}
    if "features" in only:
        batch = args.batch if gpu else 1
        result["features"] = [{"precision": p, "clips_per_s": features_only(p, args.device, batch)} for p in precisions]
    if "precision" in only and gpu:
        result["precision"] = precision_shift(args.device, 512)
    if "memory" in only:
        result["memory"] = memory(args.device, (64, 256, 1024) if gpu else (2, 8, 24))
    if "scoring" in only:
        result["scoring"] = [scoring(args.clips, width) for width in (400, 1024)]
    if "end_to_end" in only:
        with tempfile.TemporaryDirectory() as temporary:
            store = args.store or make_store(Path(temporary) / "store", args.distinct)
            result["end_to_end"] = [
                end_to_end(store, args.clips, precision, args.device, args.workers, args.batch, cached)
                for precision in precisions[:2]
                for cached in (True, False)
            ]
    for name in PARTS:
        if name in result:
            show(name, result[name])
    write_json(args.json, [], **result)


if __name__ == "__main__":
    main()
