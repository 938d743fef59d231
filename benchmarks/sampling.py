"""Sampling: how long a video takes, and what fewer calls cost in quality.

    python -m benchmarks.sampling speed --preset ucf101-m --json results/sampling_speed.json
    python -m benchmarks.sampling quality --ckpt RUN --data STORE --json results/sampling_quality.json --table TABLE
    python -m benchmarks.sampling times --ckpt RUN --table TABLE --device cpu

`speed` needs no weights: random ones take as long. It takes a preset of any family and reports seconds per stage (what
is prepared before each apart, such as fusion terms, and what follows the last, such as decoding), ms per step, network
calls and peak memory, at the preset's steps and at those of `--fast`; for models that tile also batches, and beside a
plain loop over tiles. `quality` samples a trained model that tiles at many settings and reports, by level, a Fréchet
distance on random features (levels.py; comparable within the table only) and seam ratios, with network calls and the
seconds of one video (with `--batch 1` the mean of all, without another run). A model of texts is given the captions of
--data. `--table` also writes what `hpdm sample --budget` reads: put it beside the weights as sampling.json. Rows that a
file holds of the same commit, machine and model are kept. `times` adds another kind of device to a table: the distances
stay, the seconds are measured there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.levels import usual_options
from benchmarks.machine import machine_facts, stored_rows, write_json
from benchmarks.plain_tiles import plain_tiles
from hpdm_core.conditioning.text import without_towers
from hpdm_core.config.schema import Extent, SampleSection
from hpdm_core.data.shard import write_text
from hpdm_core.families.generate import outline, sample_options
from hpdm_core.families.hpdm.config import HpdmSample
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.settings import seconds_of
from hpdm_core.families.weights import LoadedModel, WeightsHeader, load_model
from hpdm_core.metrics.seams import AXES, Axis, seam_ratio, tile_borders
from hpdm_core.nn.devices import compile_units, pick_device
from hpdm_core.nn.precision import Bf16Products, Precision, autocast, matmul_precision
from hpdm_core.sampling.engine import run_stage
from hpdm_core.sampling.noise import Noise
from hpdm_core.training.conditions import one_video, text_condition, with_placeholders

MODES = ("compiled+graphs", "compiled", "graphs", "eager")


@dataclass(frozen=True)
class SpeedRow:
    """One timed setting. mode: `plain` (a loop over tiles), `eager`, `compiled`, `graphs` or `compiled+graphs`."""

    name: str
    mode: str = "eager"
    precision: Precision = "bf16"
    batch: int = 1
    frames: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells rows of a file apart."""
        return json.dumps(asdict(self), sort_keys=True)


def speed_rows(sample: SampleSection) -> list[SpeedRow]:
    """What is fastest first, then the preset's setting, in every arithmetic."""
    fast = dict(sample.fast)
    if "phases" in type(sample).model_fields:
        return tiled_rows(fast or {"steps": [8, 4, 2], "phases": "alternate"})
    return [
        SpeedRow(name, mode, precision, options=options)
        for precision in ("bf16", "tf32")
        for mode in MODES
        for name, options in (("fast", fast), ("preset", {}))
    ]


PAPER = HpdmSample().model_dump(mode="json", include={"steps", "solver", "overlap", "phases"})
"""What HPDM's paper samples with, which are the section's defaults; levels beyond a model's are left out."""


def tiled_rows(fast: dict[str, Any]) -> list[SpeedRow]:
    """The rows of models whose calls are on tiles: the preset's setting, `--fast`, the paper's, a plain loop last."""
    settings: tuple[tuple[str, dict[str, Any]], ...] = (("preset", {}), ("fast", fast))
    return [
        *(SpeedRow(name, mode, options=options) for mode in MODES for name, options in settings),
        SpeedRow("paper", "compiled", options=PAPER),
        SpeedRow("paper, 16 frames", "compiled", frames=16, options=PAPER),
        SpeedRow("paper", "eager", options=PAPER),
        SpeedRow("fast", "compiled", batch=4, options=fast),
        SpeedRow("fast", "compiled", batch=4, options={**fast, "chunk": [4, 36, 64]}),
        SpeedRow("fast", "compiled", "tf32", options=fast),
        SpeedRow("paper", "compiled", "tf32", options=PAPER),
        SpeedRow("paper", "plain", options=PAPER),
    ]


def measure_speed(row: SpeedRow, preset: str, device: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the setting once to warm up (two steps a stage), then once in full."""
    config = with_placeholders(load_run_config(preset, tuple(overrides)))
    with torch.device(device):
        family = build_family(config).eval().requires_grad_(False)
    without_towers(family)
    model = LoadedModel(family, config, WeightsHeader({}), Path("random"), "")
    if row.mode.startswith("compiled"):
        compile_units(family.compile_units())
    changes = {"precision": row.precision, "graphs": "graphs" in row.mode, **row.options}
    with contextlib.ExitStack() as stack:
        if row.mode == "plain":
            stack.enter_context(plain_tiles())
        stack.enter_context(Bf16Products(family.compile_units(), row.precision).held())
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # before the warm-up: graphs' own memory counts at capture
        for steps in ({"steps": [2]}, {}):  # two steps meet both phases
            levels, finish = timed_levels(model, row, device, {**changes, **steps})
    total = sum(level["setup_s"] + level["seconds"] for level in levels) + finish
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {
        **asdict(row), "key": row.key, "preset": preset, "levels": levels, "finish_s": finish, "seconds": total,
        "seconds_per_video": total / row.batch, "memory_gib": peak,
        "calls": sum(level["tile_calls"] for level in levels) // row.batch,
    }  # fmt: skip


@torch.no_grad()
def timed_levels(
    model: LoadedModel, row: SpeedRow, device: str, options: dict[str, Any]
) -> tuple[list[dict[str, Any]], float]:
    """Seconds of every stage of one batch of videos, and those after the last; waits for the device in between."""
    section, seeds = sample_options(model, options), tuple(range(row.batch))
    one = one_video(model.config)
    labels, prompts = (told and told * row.batch for told in (one.labels, one.prompts))
    request = replace(one, seeds=seeds, labels=labels, prompts=prompts, frames=row.frames, device=device)
    stages = model.family.outline(request, section).stages
    levels = []
    with matmul_precision(section.precision), autocast(device, section.precision), Noise(seeds, device) as noise:
        plan = model.family.plan(request, section)
        started = now(device)
        stage = next(plan)
        for planned in stages:
            ready = now(device)
            state = run_stage(stage, noise)
            done = now(device)
            calls = planned.tile_calls * row.batch
            levels.append({
                "name": planned.name, "tiles": planned.tiles, "steps": planned.steps, "tile_calls": calls,
                "setup_s": ready - started, "seconds": done - ready, "step_ms": (done - ready) / planned.steps * 1e3,
                "tiles_per_s": calls / (done - ready),
            })  # fmt: skip
            started = now(device)
            with contextlib.suppress(StopIteration):
                stage = plan.send(state)
        return levels, now(device) - started


def now(device: str) -> float:
    """The time when the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def show_speed(result: dict[str, Any]) -> str:
    """One line of the table."""
    levels = "  ".join(
        f"{level['name']} {level['setup_s']:.2f}+{level['seconds']:.2f}s ({level['step_ms']:.0f} ms, {level['tiles']}t)"
        for level in result["levels"]
    )
    memory = "" if result["memory_gib"] is None else f"{result['memory_gib']:6.1f} GiB"
    return (
        f"{result['name']:16s} {result['mode']:16s} {result['precision']:5s} b{result['batch']:<2d} "
        f"{result['seconds_per_video']:8.2f} s/video {result['calls']:7,d} calls {memory}  {levels}  "
        f"end {result['finish_s']:.2f}s"
    )


TILINGS: dict[str, dict[str, Any]] = {
    name: {"overlap": overlap, "phases": phases, "window": window}
    for name, overlap, phases, window in (
        ("none", "none", "together", "uniform"),
        ("spatial", "spatial", "together", "uniform"),
        ("spatial smooth", "spatial", "together", "smooth"),
        ("full", "full", "together", "uniform"),
        ("alternate", "spatial", "alternate", "uniform"),
        ("alternate smooth", "spatial", "alternate", "smooth"),
        ("alternate full", "full", "alternate", "uniform"),
    )
}
"""Every key is named, so that a preset's own setting is not mistaken for another."""


def quality_settings(steps: str, solvers: str, tilings: str) -> list[tuple[str, dict[str, Any]]]:
    """Every combination, the first of each list being the reference: names and options."""
    found = []
    for s, solver, tiling in itertools.product(steps.split(";"), solvers.split(";"), tilings.split(";")):
        options = {"steps": [int(n) for n in s.split(",")], "solver": solver.split(","), **TILINGS[tiling]}
        found.append((f"{s} | {solver} | {tiling}", options))
    return found


def measure_quality(
    model: LoadedModel, reals: list[np.ndarray], real_features: list[np.ndarray], features: Any,
    options: dict[str, Any], batch: int, prompts: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Distance and seams by level, with the cost of one video."""
    from benchmarks.levels import hpdm_of, rfd, sample_levels

    device = str(next(model.family.parameters()).device)
    started = time.perf_counter()
    fakes = sample_levels(model, range(len(reals[0])), batch=batch, prompts=prompts, **options)
    mean_seconds = (time.perf_counter() - started) / len(reals[0])
    alone = {**options, **usual_options(torch.device(device))}
    plan = outline(model, frames=None, size=None, **options)
    section, patch = sample_options(model, options), hpdm_of(model).pyramid.patch
    assert isinstance(section, HpdmSample)
    overlap = section.overlap_axes
    return {
        "options": options,
        "rfd": [rfd(real, features(fake)) for real, fake in zip(real_features, fakes, strict=True)],
        "seams": [seams(patch, fake, overlap) for fake in fakes],
        "real_seams": [seams(patch, real, overlap) for real in reals],
        "calls": sum(stage.tile_calls for stage in plan.stages),
        "calls_by_level": [stage.tile_calls for stage in plan.stages],
        "block_evals": sum(stage.block_evals for stage in plan.stages),
        "seconds": mean_seconds if batch == 1 else seconds_of(model, device, alone),
    }


def seams(patch: Extent, videos_NTHWC: np.ndarray, overlap: tuple[bool, bool, bool]) -> float:
    """The strongest axis' seam ratio at the edges of tiles, mean over videos; 1 is none."""
    borders: dict[Axis, Sequence[int]] = {
        axis: tile_borders(length, part, part // 2 if shared else part)
        for axis, length, part, shared in zip(AXES, videos_NTHWC.shape[1:4], patch, overlap, strict=True)
    }
    ratios = [seam_ratio(video, borders).ratios for video in videos_NTHWC]
    by_axis = [float(np.mean([r[axis] for r in ratios])) for axis in AXES if axis in ratios[0]]
    return max(by_axis, default=1.0)


def show_quality(name: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    levels = "  ".join(f"{d:8.2f} ({s:.3f})" for d, s in zip(row["rfd"], row["seams"], strict=True))
    return f"{name:44s} {row['calls']:7,d} calls {row['seconds']:7.2f} s  rFD (seams) {levels}"


def budget_table(model: LoadedModel, rows: list[dict[str, Any]], num: int) -> dict[str, Any]:
    """What `hpdm sample --budget` reads: what all rows cost here, and the distance, as a mean over levels.

    A mean, because the finest level alone hardly sees what few steps at coarse levels do to a video's content.
    """
    return {
        "model_sha256": model.sha256,
        "distance": f"rFD of {num} videos, mean over levels",
        "rows": [
            {"options": row["options"], "frechet": float(np.mean(row["rfd"])), "calls": row["calls"]} for row in rows
        ],
        "probe": {"steps": [4, 1], "level": min(1, len(rows[0]["rfd"]) - 1)},
        "times": {},
    }


def add_times(table: dict[str, Any], model: LoadedModel, device: torch.device, seconds: list[float] | None) -> None:
    """Put this machine's times into `table`: the probe's, and `seconds` or, without them, those of every row."""
    usual = usual_options(device)
    timed = seconds or [seconds_of(model, device, {**row["options"], **usual}) for row in table["rows"]]
    probe = seconds_of(model, device, {**table["probe"], **usual})
    machine = machine_facts()["device"] if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table["times"][device.type] = {"machine": machine, "options": usual, "probe": probe, "rows": timed}


def write_table(path: Path, table: dict[str, Any]) -> None:
    """Leave the table of settings where `hpdm sample --budget` finds it."""
    write_text(path, json.dumps(table, indent=1) + "\n")


def kept_times(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """The times that the table at `path` holds for the same settings of the same weights, by kind of device."""
    if not path.is_file():
        return {}
    old = json.loads(path.read_text())
    same = [row["options"] for row in old.get("rows", [])] == [row["options"] for row in table["rows"]]
    return old.get("times", {}) if same and old.get("model_sha256") == table["model_sha256"] else {}


def run_speed(args: argparse.Namespace) -> None:
    """The table of times."""
    measured = {"preset": args.preset, "set": args.overrides}
    started, results = time.perf_counter(), stored_rows(args.json, args.device, **measured)
    rows = speed_rows(load_run_config(args.preset, tuple(args.overrides)).sample)
    modes, precisions = args.modes.split(","), args.precisions.split(",")
    for row in (row for row in rows if row.mode in modes and row.precision in precisions):
        old = next((r for r in results if r["key"] == row.key), None)
        if old is None and time.perf_counter() - started > args.deadline:
            print(f"{row.name} {row.mode}: not run, past the deadline", flush=True)
            continue
        if old is None:
            try:
                results.append(measure_speed(row, args.preset, args.device, args.overrides))
            except torch.OutOfMemoryError:
                print(f"{row.name} {row.mode}: out of memory", flush=True)
                continue
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()
        print(show_speed(old or results[-1]), flush=True)
        write_json(args.json, results, args.device, **measured)


def run_quality(args: argparse.Namespace) -> None:
    """The table of distances."""
    from benchmarks.levels import RandomFeatures, hpdm_of, real_levels
    from hpdm_core.data.store import VideoStore

    started, model = time.perf_counter(), load_model(args.ckpt, device=args.device)
    measured = {"model_sha256": model.sha256, "num": args.num}
    results = stored_rows(args.json, args.device, **measured)
    features = RandomFeatures(args.device)
    store = VideoStore.open(args.data)
    reals, _, clips = real_levels(store, hpdm_of(model).pyramid, args.num)
    texts = None if text_condition(model.config) is None else [store.clips[i].captions[0] for i in clips]
    real_features = [features(real) for real in reals]
    for name, options in quality_settings(args.steps, args.solvers, args.tilings):
        old = next((r for r in results if r["options"] == options), None)
        if old is None and time.perf_counter() - started > args.deadline:
            print(f"{name}: not run, past the deadline", flush=True)
            continue
        if old is None:
            results.append(measure_quality(model, reals, real_features, features, options, args.batch, texts))
        print(show_quality(name, old or results[-1]), flush=True)
        write_json(args.json, results, args.device, **measured)
    if args.table is not None and results:
        table = budget_table(model, results, args.num)
        table["times"] = kept_times(args.table, table)
        add_times(table, model, pick_device(args.device), [row["seconds"] for row in results])
        write_table(args.table, table)


def run_times(args: argparse.Namespace) -> None:
    """The seconds of a table's settings on this machine, beside those of other kinds of device."""
    table = json.loads(args.table.read_text())
    model, device = load_model(args.ckpt, device=args.device), pick_device(args.device)
    if table["model_sha256"] != model.sha256:
        raise SystemExit(f"{args.table} was measured for other weights than {args.ckpt}")
    add_times(table, model, device, None)
    write_table(args.table, table)
    print(json.dumps(table["times"][device.type]))


def main(argv: Sequence[str] | None = None) -> None:
    """`speed`, `quality` or `times`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    speed, quality, times = (commands.add_parser(name) for name in ("speed", "quality", "times"))
    for command, run in ((speed, run_speed), (quality, run_quality), (times, run_times)):
        command.set_defaults(run=run)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for command in (speed, quality):
        command.add_argument("--deadline", type=float, default=1e9, help="start no row after this many seconds")
        command.add_argument("--json", type=Path)
    speed.add_argument("--preset", default="ucf101-m")
    speed.add_argument("--set", dest="overrides", action="append", default=[])
    speed.add_argument("--modes", default=",".join((*MODES, "plain")), help="rows of these only")
    speed.add_argument("--precisions", default="bf16,tf32", help="rows of these only")
    quality.add_argument("--ckpt", type=Path, required=True)
    quality.add_argument("--data", type=Path, required=True, help="a store; of clips not trained on, if there is one")
    quality.add_argument("--num", type=int, default=256)
    quality.add_argument("--batch", type=int, default=16)
    quality.add_argument("--table", type=Path, help="write the settings table for --budget")
    quality.add_argument("--steps", default="64,32,16;32,16,8;16,8,4;8,4,2")
    quality.add_argument("--solvers", default="heun,euler;dpmpp_2m,euler;dpmpp_2m")
    quality.add_argument("--tilings", default="spatial;none;alternate;alternate smooth")
    times.add_argument("--ckpt", type=Path, required=True)
    times.add_argument("--table", type=Path, required=True, help="what quality --table wrote, to be added to")
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
