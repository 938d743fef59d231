"""Does the finest level earn its calls? Beside level 0 brought to the same size, against real clips.

    python -m benchmarks.finest --ckpt hpdm_core/models/shapes-288x512.safetensors --num 64 --batch 8 --json finest.json

Prompts are of pairs held out of training. Rows: the finest level; level 0 upsampled (bicubic in space, linear in time);
real clips of the same prompts, drawn anew, which is the floor. rFD is a Fréchet distance on seeded random features
(levels.py: comparable within the table only). `outlines`: how steep the steepest 0.5 % of pixels are, in grey levels a
pixel: sharpness that noise does not raise. `grain`: how steep half of the pixels are at most, which noise does raise.
`follows level 0`: PSNR of the finest level, pooled to level 0's grid, with its own level 0 and with another's.
`changes`: grey levels by which the finest level moves when finer levels alone get another prompt, or another level 0.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.levels import RandomFeatures, hpdm_of, level_chunks, level_states, rfd, sample_levels, usual_options
from benchmarks.machine import write_json
from benchmarks.prompts import prompts_for, real_videos
from hpdm_core.data.scenes import ScenePrompt
from hpdm_core.families.generate import sample_options
from hpdm_core.families.weights import LoadedModel, load_model
from hpdm_core.nn.precision import autocast, matmul_precision
from hpdm_core.sampling.stage import Request
from hpdm_core.video import to_uint8

REAL_AGAIN = 12
"""Another seed than that of the clips compared with."""
OUTLINES = 0.995


def upsampled(video_THWC: np.ndarray, frames: int, size: tuple[int, int]) -> np.ndarray:
    """A strided, small video at `frames` and `size`: its frames at their own times, the last one held."""
    small = torch.from_numpy(video_THWC).permute(0, 3, 1, 2).float()
    large = F.interpolate(small, size=size, mode="bicubic").clamp(0, 255)
    at = (torch.arange(frames) * len(small) / frames).clamp(max=len(small) - 1)
    before = at.floor().long()
    share = (at - before)[:, None, None, None]
    after = (before + 1).clamp(max=len(small) - 1)
    return (large[before] * (1 - share) + large[after] * share).round().byte().permute(0, 2, 3, 1).numpy()


def pooled(video_THWC: np.ndarray, frames: int, size: tuple[int, int]) -> np.ndarray:
    """The frames that level 0 shows of a video, averaged over the pixels of its grid; float [T, H, W, 3]."""
    strided = torch.from_numpy(video_THWC[:: len(video_THWC) // frames]).permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(strided, size).permute(0, 2, 3, 1).numpy()


def look(videos: Iterable[np.ndarray]) -> dict[str, float]:
    """Outlines and grain of brightness, in grey levels: see the head of this file."""
    outlines, grain = [], []
    for video in videos:
        luma = (torch.from_numpy(video).float() @ torch.tensor([0.299, 0.587, 0.114])).numpy()
        steep = np.hypot(np.diff(luma, axis=1)[:, :, :-1], np.diff(luma, axis=2)[:, :-1])
        outlines.append(np.quantile(steep, OUTLINES))
        grain.append(np.median(steep))
    return {"outlines": float(np.mean(outlines)), "grain": float(np.mean(grain))}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise of pixels in 0..255, dB."""
    return float(10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-10)))


def another(items: Sequence[Any]) -> list[Any]:
    """Everyone gets the neighbour's."""
    return [*items[1:], items[0]]


@torch.no_grad()
def finest_from(model: LoadedModel, level_0: Tensor, seeds: Sequence[int], texts: Sequence[str], batch: int) -> Tensor:
    """The finest level over a given level 0 (scaled state) with given prompts; uint8 [N, T, H, W, 3]."""
    device = next(model.family.parameters()).device
    section = sample_options(model, {**usual_options(device), **level_chunks(device, batch)})
    made, scale = [], hpdm_of(model).levels[-1].scale
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        rows, first = tuple(seeds[part]), {"video": level_0[part].to(device)}
        plan = model.family.plan(Request(rows, None, tuple(texts[part]), device=device), section)
        with matmul_precision(section.precision), autocast(device, section.precision):
            *_, last = level_states(plan, rows, device, first)
        made.append(to_uint8(last["video"] * scale).cpu())
    return torch.cat(made)


def changes(model: LoadedModel, levels: list[np.ndarray], asked: list[ScenePrompt], batch: int) -> dict[str, float]:
    """Grey levels between finest levels that differ in one thing."""
    texts, seeds = [p.text for p in asked], list(range(len(asked)))
    pixels = torch.from_numpy(levels[0]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    state = pixels / hpdm_of(model).levels[0].scale
    same = finest_from(model, state, seeds, texts, batch)
    other_prompt = finest_from(model, state, seeds, another(texts), batch)
    other_level = finest_from(model, torch.stack(another(list(state))), seeds, texts, batch)

    def apart(a: Tensor) -> float:
        return float(np.mean([(x.float() - y.float()).abs().mean().item() for x, y in zip(a, same, strict=True)]))

    return {"another prompt": apart(other_prompt), "another level 0": apart(other_level)}


def measure(model: LoadedModel, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    asked = prompts_for(True, args.num)
    started = time.perf_counter()
    levels = sample_levels(model, range(args.num), batch=args.batch, prompts=[p.text for p in asked])
    seconds = (time.perf_counter() - started) / args.num
    coarse, finest = levels[0], levels[-1]
    frames, height, width = finest.shape[1:4]
    large = np.stack([upsampled(video, frames, (height, width)) for video in coarse])
    real = np.stack(real_videos(asked, frames, (height, width)))
    again = np.stack(real_videos(asked, frames, (height, width), seed=REAL_AGAIN))
    features = RandomFeatures(str(next(model.family.parameters()).device))
    reference = features(real)
    rows = {
        name: {"rfd": rfd(reference, features(videos)), **look(videos)}
        for name, videos in (("finest level", finest), ("level 0 upsampled", large), ("real clips", again))
    }
    down = [pooled(video, coarse.shape[1], coarse.shape[2:4]) for video in finest]
    follows = {
        name: float(np.mean([psnr(a, b) for a, b in zip(down, given, strict=True)]))
        for name, given in (("its own", list(coarse)), ("another's", another(list(coarse))))
    }
    few = min(args.changes, args.num)
    moved = changes(model, [level[:few] for level in levels], asked[:few], args.batch) if few > 1 else {}
    return {"num": args.num, "video": [frames, height, width], "seconds_per_video": seconds, "rows": rows,
            "follows level 0, dB": follows, "changes": moved}  # fmt: skip


def main() -> None:
    """Sample, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt", type=Path, required=True, help="run or weights file of a text model of several levels"
    )
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--changes", type=int, default=8, help="videos of the last part, which makes each three times")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_model(args.ckpt, device=args.device)
    found = measure(model, args)
    for name, row in found["rows"].items():
        print(f"{name:20s} rFD {row['rfd']:9.3f}   outlines {row['outlines']:6.2f}   grain {row['grain']:5.2f}")
    print({key: value for key, value in found.items() if key != "rows"})
    write_json(args.json, [found], args.device, checkpoint={"sha256": model.sha256, "step": model.header.step})


if __name__ == "__main__":
    main()
