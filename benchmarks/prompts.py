"""Do prompts matter? Asks a text model for scenes, reads its videos back, and counts what is as asked.

    python -m benchmarks.prompts --ckpt runs/t2v --level 0 --guidance 1,2,4 --num 128 --out results/prompts.json

Half of the videos are of pairs that training showed, half of pairs held out of it (`hpdm_core.data.scenes`). Beside the
model's rows stand chance, which is the same videos held against one another's prompts, and real clips of the same
prompts, which is what the reader makes of a perfect model. Without --ckpt there are only the real clips.

`pair` is the share with all of the prompt's pair right, such as the colour and the shape; `all` with everything right.
A contact sheet for each guidance lies beside the JSON: each prompt with what was read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.levels import GPU_CHUNK
from benchmarks.machine import write_json
from benchmarks.shapes_reader import ATTRIBUTES, Reading, accuracy, asked_of, read_video
from hpdm_core.data.scene_video import NOMINAL_FRAMES, render_scene
from hpdm_core.data.scenes import ScenePrompt, draw_scene, scene_prompts
from hpdm_core.data.write import write_contact_sheet
from hpdm_core.families.generate import iterate_samples
from hpdm_core.families.weights import LoadedModel, load_model
from hpdm_core.nn.devices import pick_device

COLUMNS = (*ATTRIBUTES, "pair", "all")
PARTS = {"seen": False, "held out": True}
SHOWN = 12  # videos of each part on a contact sheet
REAL_SEED = 11


def prompts_for(held_out: bool, num: int) -> list[ScenePrompt]:
    """`num` prompts, the same each time, evenly over the pairs; those of a few are spread over all of them."""
    every = scene_prompts(held_out)
    if num >= len(every):
        return list(islice(cycle(every), num))
    return [every[i * len(every) // num] for i in range(num)]


def real_videos(
    prompts: Sequence[ScenePrompt], frames: int, size: tuple[int, int], seed: int = REAL_SEED
) -> list[np.ndarray]:
    """A real clip of each prompt, of the given frames and size."""
    step = max(NOMINAL_FRAMES // frames, 1)
    scenes = [draw_scene(seed, i, prompt.facts) for i, prompt in enumerate(prompts)]
    return [render_scene(scene, seed, i, frames, size, step) for i, scene in enumerate(scenes)]


def generated_videos(
    model: LoadedModel, prompts: Sequence[ScenePrompt], batch: int, device: str | None, options: dict[str, Any]
) -> list[np.ndarray]:
    """A video of each prompt, of seeds 0, 1, 2 …"""
    texts = [prompt.text for prompt in prompts]
    seeds = range(len(texts))
    samples = iterate_samples(model, seeds, prompts=texts, batch=batch, device=device, **options)
    return [sample.video for sample in samples]


def score(prompts: Iterable[ScenePrompt], readings: Iterable[Reading]) -> dict[str, float]:
    """Accuracy in each of COLUMNS."""
    return accuracy([_right(prompt, reading) for prompt, reading in zip(prompts, readings, strict=True)], COLUMNS)


def chance(prompts: Sequence[ScenePrompt], readings: Sequence[Reading]) -> dict[str, float]:
    """What the same videos score on average against the prompts of the others."""
    shifts = range(1, len(prompts))
    results = [
        _right(prompts[(i + shift) % len(prompts)], reading) for shift in shifts for i, reading in enumerate(readings)
    ]
    return accuracy(results, COLUMNS)


def _right(prompt: ScenePrompt, reading: Reading) -> dict[str, bool]:
    right = asked_of(prompt.facts, reading)
    pair = [right[name] for name in prompt.pair if name in right]
    return {**right, "pair": all(pair), "all": all(right.values())}


def measure(model: LoadedModel | None, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each guidance weight, part and kind: model, chance, real."""
    rows: list[dict[str, Any]] = []
    prompts = {part: prompts_for(held_out, args.num) for part, held_out in PARTS.items()}
    shape = (args.frames, *args.size)
    for weight in args.guidance if model else ():
        assert model is not None
        own = model.config.sample.guidance  # pyright: ignore[reportAttributeAccessIssue]  # all families name it so
        options = _options(args, (weight, *own[1:]))
        sheet: list[tuple[np.ndarray, str]] = []
        for part, asked in prompts.items():
            started = time.monotonic()
            videos = generated_videos(model, asked, args.batch, args.device, options)
            seconds = time.monotonic() - started
            shape = videos[0].shape[:3]
            readings = [read_video(video) for video in videos]
            about = {"guidance": weight, "part": part, "num": len(videos), "video": list(shape)}
            rows.append({"kind": "model", **about, "seconds": seconds, **score(asked, readings)})
            rows.append({"kind": "chance", **about, **chance(asked, readings)})
            sheet += list(zip(videos, map(_title, asked, readings), strict=True))[:SHOWN]
            _print_rows(rows[-2:])
        if args.out:
            videos, titles = zip(*sheet, strict=True)
            write_contact_sheet(args.out.with_name(f"{args.out.stem}-w{weight:g}.png"), videos, titles)
    for part, asked in prompts.items():
        readings = [read_video(video) for video in real_videos(asked, shape[0], shape[1:])]
        rows.append({"kind": "real", "part": part, "num": len(asked), "video": list(shape), **score(asked, readings)})
        _print_rows(rows[-1:])
    return rows


def _options(args: argparse.Namespace, guidance: tuple[float, ...]) -> dict[str, Any]:
    """Keys of the `sample` section."""
    device = pick_device(args.device)
    options: dict[str, Any] = {"guidance": list(guidance), "precision": args.precision or "fp32"}
    if device.type == "cuda":  # one video a call would leave it idle
        options |= {"precision": args.precision or "bf16", "chunk": min(args.batch, GPU_CHUNK)}
    options |= {"chunk": args.chunk} if args.chunk else {}
    options |= {"level": args.level} if args.level is not None else {}
    return options | ({"steps": args.steps} if args.steps else {})


def _title(prompt: ScenePrompt, reading: Reading) -> str:
    found = f"{reading.count} {reading.colour} {reading.shape} {reading.motion} {reading.direction}".rstrip()
    return f"{prompt.text}{' (held out)' if prompt.held_out else ''}: {found}"


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        name = f"{row['kind']}, {row['part']}" + (f", guidance {row['guidance']:g}" if "guidance" in row else "")
        print(f"{name:32}" + "".join(f"{row.get(key, float('nan')):10.3f}" for key in COLUMNS), flush=True)


def _numbers(kind: type) -> Any:
    return lambda text: [kind(word) for word in text.split(",")]


def main() -> None:
    """Sample, read, print the table, write it as JSON with contact sheets beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="run or weights file of a text model; none: real clips alone")
    parser.add_argument("--num", type=int, default=128, help="prompts of seen pairs, and as many of held-out ones")
    parser.add_argument("--level", type=int, help="stop at this pyramid level; the last")
    parser.add_argument("--steps", type=_numbers(int), help="steps per stage; the model's")
    parser.add_argument(
        "--guidance",
        type=_numbers(float),
        default=[1.0, 2.0, 4.0],
        help="weights to compare, of the first stage; later ones keep the model's where it names their own",
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--chunk", type=int, help="rows of a network call; on a GPU the batch, at most 64, else the model's"
    )
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="bf16 on a GPU, fp32 elsewhere")
    parser.add_argument("--device")
    parser.add_argument("--frames", type=int, default=8, help="of the real clips, without --ckpt")
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(36, 64))
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    print(f"{'':32}" + "".join(f"{name:>10}" for name in COLUMNS))
    model = load_model(args.ckpt) if args.ckpt else None
    checkpoint = {"sha256": model.sha256, "step": model.header.step} if model else None
    rows = measure(model, args)
    write_json(args.out, rows, args.device, checkpoint=checkpoint, steps=args.steps, level=args.level)


if __name__ == "__main__":
    main()
