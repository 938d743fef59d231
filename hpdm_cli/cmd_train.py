"""`hpdm train`: train a preset; the same command again continues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpdm_cli import console
from hpdm_cli.launch import command_line, launch
from hpdm_cli.options import Device, DryRun, Nproc, Out, Overrides, Preset, Store, TimeLimit, parse_duration
from hpdm_core.config.load import dump_config
from hpdm_core.errors import DataError

if TYPE_CHECKING:
    from hpdm_core.config.schema import RunConfig
    from hpdm_core.training.plan import PhasePlan, TrainPlan


def train(
    context: typer.Context,
    preset: Preset,
    data: Store = None,
    out: Out = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse to continue in a used directory.")] = False,
    time_limit: TimeLimit = None,
    nproc: Nproc = 1,
    device: Device = None,
    dry_run: DryRun = False,
) -> None:
    """Train a preset on a prepared store.

    The run directory is --out, or runs/<preset>. The same command again continues from the newest
    checkpoint there. SIGTERM, SIGINT, SIGHUP, SIGUSR1 and --time-limit end the run cleanly with exit code 75.
    """
    limit = parse_duration(time_limit) if time_limit else None
    run = out or Path("runs") / Path(preset).stem
    from hpdm_core.families.registry import load_run_config
    from hpdm_core.training.plan import plan_training
    from hpdm_core.training.run import check_place, rank_rows
    from hpdm_core.training.run import train as run_training

    config = load_run_config(preset, overrides or [])
    store, missing = store_or_error(config, data, dry_run=dry_run)
    plan = plan_training(config, store)
    for phase in plan.phases if dry_run or nproc > 1 else ():
        rank_rows(phase.batch_size, phase.micro_batch, nproc)
    if dry_run:
        console.print_result(dump_config(plan.config) + "\n" + describe(plan, store, run))
        if missing is not None:
            raise missing
        return
    if nproc > 1:
        check_place(run, fresh)
        raise typer.Exit(launch(command_line(context), nproc, device))
    for line in describe(plan, store, run).splitlines():
        console.print_note(line)
    result = run_training(config, store, run, fresh=fresh, time_limit=limit, device=device)
    console.print_result(f"trained {result.videos_seen:,} videos in {result.step:,} steps: {result.weights}")
    console.print_note(f"next: hpdm sample --ckpt {run}")


def store_or_error(config: RunConfig, given: Path | None, *, dry_run: bool) -> tuple[Path | None, DataError | None]:
    """The store to train on. A dry run shows its plan without one first, so there the error is handed back."""
    from hpdm_core.training.source import find_store

    try:
        return find_store(config, given), None
    except DataError as error:
        if not dry_run:
            raise
        return None, error


def describe(plan: TrainPlan, store: Path | None, run: Path) -> str:
    """The plan in lines for people."""
    lines = [f"run: {run}", f"store: {store or 'none yet'}", f"parameters: {plan.parameters:,}"]
    for phase in plan.phases:
        lines += _describe_phase(phase)
    outline = plan.sampling
    height, width = outline.size
    lines.append(f"sampling one video of {outline.frames}x{height}x{width}:")
    for stage in outline.stages:
        lines.append(
            f"  {stage.name}: {stage.frames}x{stage.size[0]}x{stage.size[1]}, {stage.steps} steps of "
            f"{stage.solver}, {stage.tiles} tiles, {stage.tile_calls:,} network calls"
        )
    total = sum(stage.tile_calls for stage in outline.stages)
    return "\n".join([*lines, f"  {total:,} network calls in all"])


def _describe_phase(phase: PhasePlan) -> list[str]:
    sizes = ", ".join(f"{height}x{width}" for height, width in phase.sizes)
    lines = [
        f"phase {phase.name}: {phase.steps:,} steps of {phase.batch_size} videos "
        f"in {phase.batch_size // phase.micro_batch} micro-batches, {phase.videos:,} videos in all",
        f"  reads clips of at least {phase.frames} frames at {sizes}",
    ]
    if phase.clips is not None:
        lines.append(
            f"  {phase.clips:,} clips kept, {phase.batches_per_epoch:,.1f} batches per epoch, "
            f"{phase.videos / phase.clips:,.1f} epochs"
        )
        lines += [f"  {count:,} clips dropped: {reason}" for reason, count in (phase.dropped or {}).items()]
    return lines
