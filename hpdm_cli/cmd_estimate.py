"""`hpdm estimate`: what a preset costs to train and to sample, before anything is allocated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpdm_cli import console
from hpdm_cli.options import Json, Overrides, require_finite
from hpdm_cli.results import require_json_file, to_stdout, write_json_text

if TYPE_CHECKING:
    from hpdm_core.training.estimate import Estimate, PhaseEstimate, RoleEstimate


def estimate(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A preset (`hpdm presets list`) or a YAML file.")],
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="GPUs that share the batch.")] = 1,
    gpu_memory: Annotated[float, typer.Option("--gpu-memory", metavar="GB", min=1, help="Memory of one GPU.")] = 80.0,
    tflops: Annotated[
        float, typer.Option("--tflops", min=1, help="Its stated dense bf16 TFLOP/s (H200 989, A100 312, 4090 165).")
    ] = 989.0,
    overrides: Overrides = None,
    price: Annotated[
        float | None, typer.Option("--price", metavar="$/H", min=0, help="Of one GPU for an hour.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Predict parameters, FLOPs, memory, days and sampling seconds. Needs no GPU and allocates no weights.

    Speeds are H200 figures of our own network, scaled by --tflops. Exit code 0 whether it fits or not.
    """
    from hpdm_core.families.registry import load_run_config
    from hpdm_core.training.estimate import estimate as run_estimate

    require_finite({"--gpu-memory": gpu_memory, "--tflops": tflops, "--price": price})
    config = load_run_config(preset, overrides or [])
    require_json_file(json_file)
    found = run_estimate(config, gpus=gpus, memory_gib=gpu_memory, tflops=tflops)
    if json_file is not None:
        write_json_text(json_file, json.dumps(as_json(found, preset, price), indent=1))
    if not to_stdout(json_file):
        for line in describe(found, price):
            console.print_result(line)


def describe(found: Estimate, price: float | None) -> list[str]:
    """The estimate in lines for people."""
    total = found.parameters["total"]
    lines = [f"parameters: {total:,}"]
    lines += [f"  {name}: {count:,}" for name, count in found.parameters.items() if name != "total"]
    for phase in found.phases:
        lines += _describe_phase(phase)
    lines += _describe_fit(found)
    lines.append(f"checkpoint: {_gb(found.checkpoint_bytes)}")
    if found.gpus > 1:
        lines.append(
            f"network: {_gb(found.network_bytes_per_step)} sent by each GPU in a step (no time counted for it)"
        )
    lines.append(f"training in all: {found.days:.2f} days on {found.gpus} GPUs{_cost(found.days, found.gpus, price)}")
    frames, (height, width) = found.outline.frames, found.outline.size
    seconds = sum(stage.seconds for stage in found.sampling)
    lines.append(f"sampling one video of {frames}x{height}x{width}: {seconds:.1f} s, {_gb(found.sampling_bytes)}")
    for stage in found.sampling:
        lines.append(
            f"  {stage.name}: {stage.tiles} tiles, {stage.calls:,} network calls, "
            f"{stage.flops / 1e12:,.1f} TFLOP, {stage.seconds:.2f} s"
        )
    lines.append(
        f"speeds: from steps of HPDM-M on an H200, scaled to {found.tflops:g} TFLOP/s; "
        "other networks reach less. Not counted: loading, communication, checkpoints."
    )
    return lines


def _describe_phase(phase: PhaseEstimate) -> list[str]:
    lines = [
        f"phase {phase.name}: {phase.steps:,} steps, {phase.videos:,} videos, "
        f"{phase.videos_per_s:.1f} videos/s, {phase.days:.2f} days"
    ]
    for role in phase.roles:
        lines += _describe_role(role)
    return lines


def _describe_role(role: RoleEstimate) -> list[str]:
    lines = [f"  {role.role}: {role.flops / 1e12:.4g} TFLOP per video, forward and backward"]
    if role.levels:
        lines.append("    by level: " + ", ".join(f"{k} {v / 1e12:.3g}" for k, v in role.levels.items()))
    big = {k: v for k, v in role.blocks.items() if v >= 0.01 * role.flops}
    lines.append("    by block: " + ", ".join(f"{k} {v / 1e12:.3g}" for k, v in big.items()))
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in role.bytes.items() if size)
    lines.append(
        f"    memory of one GPU at {role.rows} videos in micro-batches of {role.micro_batch}: "
        f"{_gb(role.total_bytes)} ± 10 % ({parts})"
    )
    return lines


def _describe_fit(found: Estimate) -> list[str]:
    memory = f"{found.memory / 2**30:g} GiB"
    lines = [f"{found.verdict} on GPUs of {memory}: the largest peak is {_gb(found.peak.total_bytes)}"]
    if found.peak.largest_micro_batch:
        lines[0] += f"; largest micro-batch that fits: {found.peak.largest_micro_batch}"
    lines += [
        f"  --set {remedy.overrides}: {_gb(remedy.bytes)}, {'fits' if remedy.fits else 'still does not fit'}"
        for remedy in found.remedies
    ]
    return lines


def as_json(found: Estimate, preset: str, price: float | None) -> dict[str, Any]:
    """The estimate as plain data. Bytes, seconds, FLOPs; `flops_per_video` is forward and backward."""
    return {
        "preset": preset,
        "gpus": found.gpus,
        "gpu_memory_bytes": int(found.memory),
        "tflops": found.tflops,
        "parameters": dict(found.parameters),
        "verdict": found.verdict,
        "peak_bytes": found.peak.total_bytes,
        "remedies": [vars(remedy) for remedy in found.remedies],
        "days": found.days,
        "cost": None if price is None else found.days * 24 * found.gpus * price,
        "checkpoint_bytes": found.checkpoint_bytes,
        "network_bytes_per_step": found.network_bytes_per_step,
        "phases": [_phase_json(phase) for phase in found.phases],
        "sampling": {
            "bytes": found.sampling_bytes,
            "seconds": sum(stage.seconds for stage in found.sampling),
            "stages": [vars(stage) for stage in found.sampling],
        },
    }


def _phase_json(phase: PhaseEstimate) -> dict[str, Any]:
    roles = [
        {
            "role": role.role,
            "rows": role.rows,
            "micro_batch": role.micro_batch,
            "largest_micro_batch": role.largest_micro_batch,
            "flops_per_video": role.flops,
            "flops_by_level": dict(role.levels),
            "flops_by_block": dict(role.blocks),
            "bytes": dict(role.bytes),
            "step_seconds": role.step_seconds,
        }
        for role in phase.roles
    ]
    numbers = {"steps": phase.steps, "videos": phase.videos, "videos_per_s": phase.videos_per_s, "days": phase.days}
    return {"name": phase.name, **numbers, "roles": roles}


def _cost(days: float, gpus: int, price: float | None) -> str:
    return "" if price is None else f", {days * 24 * gpus * price:,.0f} at {price:g} per GPU hour"


def _gb(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
