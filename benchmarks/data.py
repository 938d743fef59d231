"""How fast training patches come from a store, against decoding the source files.

    python -m benchmarks.data [--source DIR] [--size 256x256] [--json FILE]

One process on one core reads patches of 16 frames x 64 x 64 pixels at random places of random clips: from a raw store,
from a JPEG store, from the same JPEG frames without restart markers (as stores were before; every frame is then decoded
whole), and by decoding each source file from its first frame to the last one needed. Also whole training items (three
nested windows, collated) through the loader, and the cores that feed HPDM-M at --rate. Without --source the videos are
procedural, encoded as H.264. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from benchmarks.machine import machine_facts, write_json
from hpdm_core.config.schema import DataSection
from hpdm_core.data.backends import available_backends
from hpdm_core.data.clip import Recipe
from hpdm_core.data.codecs import Codec, data_file, offsets_file
from hpdm_core.data.dataset import make_loader
from hpdm_core.data.decode import decode_video
from hpdm_core.data.jpeg import QUALITY
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.shard import SHARDS, read_json, shard_name
from hpdm_core.data.shard import write_json as write_json_file
from hpdm_core.data.sources.base import Scan, SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.data.store import STORE_FILE, VideoStore
from hpdm_core.data.synthetic import render_clip
from hpdm_core.data.window import Cut, Window
from hpdm_core.data.write import write_mp4
from hpdm_core.video import frame_pyramid_sizes, resize_frames

FRAMES, SIDE = 16, 64


@dataclass(frozen=True)
class NestedView:
    """Three windows of 16 x 64 x 64 at three frame sizes, as a model of three levels reads them."""

    sizes: tuple[tuple[int, int], ...]
    frames: int = FRAMES

    def cut(self, start: int, rng: np.random.Generator) -> Cut:
        """One random window per size."""
        return Cut({f"level{i}": random_window(rng, size, start, 1) for i, size in enumerate(self.sizes)})


def random_window(rng: np.random.Generator, size: tuple[int, int], start: int, slack: int) -> Window:
    """One patch at a random place, beginning up to `slack - 1` frames after `start`."""
    top, left = (int(rng.integers(side - SIDE + 1)) for side in size)
    return Window(size, start + int(rng.integers(slack)), 1, FRAMES, top, left, SIDE, SIDE)


def rate(read: Callable[[np.random.Generator], object], seconds: float) -> float:
    """Calls per second of `read`, after three to warm up."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        read(rng)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        read(rng)
        count += 1
    return count / (time.perf_counter() - start)


def from_store(store: VideoStore) -> Callable[[np.random.Generator], object]:
    """A reader of random patches of the finest frames."""
    size = store.sizes[0]
    long_enough = [c for c in store.clips if c.num_frames >= FRAMES]

    def read(rng: np.random.Generator) -> object:
        clip = long_enough[int(rng.integers(len(long_enough)))]
        return store.read(clip.index, random_window(rng, size, 0, clip.num_frames - FRAMES + 1))

    return read


def from_files(store: VideoStore, root: Path) -> Callable[[np.random.Generator], object]:
    """The same patches, from the source files."""
    size = store.sizes[0]
    long_enough = [c for c in store.clips if c.num_frames >= FRAMES]

    def read(rng: np.random.Generator) -> object:
        clip = long_enough[int(rng.integers(len(long_enough)))]
        window = random_window(rng, size, 0, clip.num_frames - FRAMES + 1)
        video, _ = decode_video(root / clip.id, max_frames=window.last_frame + 1)
        frames = resize_frames(video[window.start :], size)
        return frames[:, window.top : window.top + SIDE, window.left : window.left + SIDE].copy()

    return read


def from_loader(store: VideoStore) -> Callable[[np.random.Generator], object]:
    """Whole training items of up to three levels, one at a time."""
    view = NestedView(tuple(s for s in store.sizes if min(s) >= SIDE)[:3])
    loader = make_loader(store, view, DataSection(dataset="benchmark", workers=0), seed=0, batch_size=1)
    return lambda rng: next(loader)


def write_procedural(folder: Path, num: int = 24) -> None:
    """Procedural clips of 64 frames at 240x320 as H.264."""
    for index in range(num):
        write_mp4(folder / f"{index:03d}.mp4", render_clip(0, index, 64, (240, 320))[0], 25)


def prepare(scan: Scan, out: Path, size: tuple[int, int], codec: Codec) -> tuple[VideoStore, dict[str, object]]:
    """Prepare a store; the store and what it took."""
    start = time.perf_counter()
    summary = prepare_store(scan, out, Recipe(frame_pyramid_sizes(size), codec), PrepareOptions(max_bad=1.0))
    seconds = time.perf_counter() - start
    facts = {
        "clips": summary.num_clips,
        "quarantined": summary.num_bad,
        "frames": summary.num_frames,
        "seconds": round(seconds, 2),
        "frames_per_s": round(summary.num_frames / seconds, 1),
        "mib": round(summary.num_bytes / 2**20, 1),
    }
    return VideoStore.open(out), facts


def without_markers(raw: VideoStore, jpeg: VideoStore, out: Path) -> VideoStore:
    """A copy of the JPEG store `jpeg` as it was before restart markers; `raw` has the pixels."""
    shutil.copytree(jpeg.path, out)
    about = read_json(out / STORE_FILE)
    for number, files in enumerate(about["shards"]):
        for size in jpeg.sizes:
            shard = shard_name(number)
            frames = np.load(raw.path / SHARDS / data_file(shard, size, "raw"), mmap_mode="r")
            blobs = [plain_jpeg(frame) for frame in frames]
            (out / SHARDS / data_file(shard, size, "jpeg")).write_bytes(b"".join(blobs))
            np.save(out / SHARDS / offsets_file(shard, size), np.cumsum([0, *map(len, blobs)], dtype=np.int64))
            files[data_file(shard, size, "jpeg")] = sum(map(len, blobs))
    write_json_file(out / STORE_FILE, about)
    return VideoStore.open(out)


def plain_jpeg(frame_HWC: np.ndarray) -> bytes:
    """One frame as an ordinary JPEG file of the store's quality."""
    buffer = io.BytesIO()
    Image.fromarray(frame_HWC).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder of videos; procedural ones without it")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--rate", type=float, default=95.0, help="items per second that one GPU takes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    height, width = (int(side) for side in args.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = args.source or folder / "videos"
        if args.source is None:
            write_procedural(root)
        scan = scan_source(SourceOptions(path=root))
        stores = {codec: prepare(scan, folder / codec, (height, width), codec) for codec in ("raw", "jpeg")}
        raw, jpeg = stores["raw"][0], stores["jpeg"][0]
        plain = without_markers(raw, jpeg, folder / "plain")
        readers = {
            "patch, raw store": from_store(raw),
            "patch, jpeg store": from_store(jpeg),
            "patch, jpeg store without markers": from_store(plain),
            "patch, source file": from_files(raw, root),
            "3-level item, raw store": from_loader(raw),
            "3-level item, jpeg store": from_loader(jpeg),
            "3-level item, jpeg without markers": from_loader(plain),
        }
        rates = {name: round(rate(read, args.seconds), 1) for name, read in readers.items()}
    rows = [
        {"read": name, "per_second_per_core": value, "cores_at_rate": round(args.rate / value, 2)}
        for name, value in rates.items()
    ]
    about = {
        "source": "procedural" if args.source is None else args.source.name,
        "size": args.size,
        "patch": f"{FRAMES}x{SIDE}x{SIDE}",
        "rate": args.rate,
        "decoders": [f"{name} {version(name)}" for name in available_backends()],
        "prepare": {codec: facts for codec, (_, facts) in stores.items()},
    }
    show(about, rates)
    write_json(args.json, rows, **about)


def show(about: dict, rates: dict[str, float]) -> None:
    """Print the table."""
    print(f"{machine_facts()['cores']} cores; {about['source']} videos at {about['size']}, patches {about['patch']}")
    for codec, facts in about["prepare"].items():
        print(f"prepare {codec:<5} " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    slowest = min(rates.values())
    for name, value in rates.items():
        cores = f"{about['rate'] / value:6.2f} cores at {about['rate']:g}/s" if "item" in name else ""
        print(f"{name:<34} {value:>10.1f}/s  {1000 / value:>8.3f} ms  {value / slowest:>7.1f}x  {cores}")


if __name__ == "__main__":
    main()
