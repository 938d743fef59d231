"""Speed, memory and precision of feature extraction, and 10,000 clips end to end.

    python benchmarks/metrics.py [--device cuda] [--store STORE] [--clips 10000] [--json FILE]

The store (raw, 256x256, 16 frames or more) may hold fewer clips; they are then read again, from the page cache.
Seeded random weights: the arithmetic is that of the trained network.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import machine_facts
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.features import Job, extract, frame_rule
from hpdm_core.metrics.frechet import frechet_distance, frechet_from_features
from hpdm_core.metrics.interval import frechet_limit, frechet_standard_error
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.metrics.sources import StoreSource
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
    return {key: {"rfvd": value, "shift": value / found["fp32"] - 1} for key, value in found.items()}


def memory(device, counts):
    """Peak memory after scoring growing numbers of clips."""
    rows = []
    job = {"video": Job(network("fp32", device))}
    for count in counts:
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        extract(random_clips(count, 64), job, batch_size=8, device=device)
        gpu = torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None
        rows.append(
            {"clips": count, "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "gpu_mib": gpu}
        )
    return rows


def end_to_end(store, clips, precision, device, workers, batch):
    """Seconds from opening the store to FVD with interval and limit, for `clips` clips."""
    detector = network(precision, device)
    with torch.inference_mode():
        detector.features(torch.zeros(batch, 16, 256, 256, 3, dtype=torch.uint8, device=device)).cpu()
    start = time.perf_counter()
    source = StoreSource(store)
    order = itertools.islice(itertools.cycle(range(len(source))), clips)
    taken = (clip.frames for clip in source.clips(order, frame_rule(16, 1, "first", 0), None, workers))
    rows = extract(taken, {"video": Job(detector)}, batch_size=batch, device=device)["video"]
    read = time.perf_counter() - start
    half = len(rows.features) // 2
    a, b = rows.features[:half], rows.features[half:]
    ga, gb = rows.statistics.gaussian(), rows.statistics.gaussian()
    frechet_distance(ga, gb)
    frechet_standard_error(a, b, ga, gb)
    frechet_limit(a, b)
    total = time.perf_counter() - start
    return {
        "clips": clips,
        "distinct": len(source),
        "precision": precision,
        "features_s": read,
        "total_s": total,
        "clips_per_s": clips / read,
    }


def main():
    """Run everything that the options allow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    precisions = ("fp32", "tf32", "bf16") if gpu else ("fp32",)
    result = {"machine": machine_facts(), "device": args.device}
    result["features_only"] = {p: features_only(p, args.device, args.batch if gpu else 1) for p in precisions}
    print("clips/s, features alone, 16x256x256:", {k: round(v, 1) for k, v in result["features_only"].items()})
    if gpu:
        result["precision"] = precision_shift(args.device, 512)
        print("rFVD by precision:", result["precision"])
    result["memory"] = memory(args.device, (64, 256, 1024) if gpu else (2, 8, 24))
    print("peak memory:", result["memory"])
    if args.store is not None:
        result["end_to_end"] = [
            end_to_end(args.store, args.clips, p, args.device, args.workers, args.batch) for p in precisions[:2]
        ]
        for row in result["end_to_end"]:
            print("end to end:", row)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
