"""`hpdm finetune-hires`: grow a trained model to more resolution; the same command again continues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpdm_cli import console
from hpdm_cli.cmd_train import describe as describe_training
from hpdm_cli.cmd_train import store_or_error
from hpdm_cli.launch import command_line, launch
from hpdm_cli.options import (
    Device,
    DryRun,
    Frames,
    Nproc,
    Out,
    Overrides,
    Preset,
    Res,
    Store,
    TimeLimit,
    parse_duration,
    parse_size,
)
from hpdm_core.config.load import dump_config

if TYPE_CHECKING:
    from hpdm_core.sampling.stage import Outline
    from hpdm_core.training.finetune import FinetunePlan

From = Annotated[
    Path, typer.Option("--from", metavar="RUN|FILE", help="The trained base: a run directory or weights file.")
]


def finetune_hires(
    context: typer.Context,
    base: From,
    preset: Preset,
    data: Store = None,
    out: Out = None,
    res: Res = None,
    frames: Frames = None,
    overrides: Overrides = None,
    time_limit: TimeLimit = None,
    nproc: Nproc = 1,
    device: Device = None,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a trained model to higher resolution.

    The preset says which model to grow into: the base's levels and finer ones. --res and --frames set its
    target video. All levels train jointly, from the base's weights. The run directory is --out, or
    runs/<preset>; the same command again continues from the newest checkpoint there.
    """
    limit = parse_duration(time_limit) if time_limit else None
    size = parse_size(res) if res else None
    run = out or Path("runs") / Path(preset).stem
    from hpdm_core.training.finetune import finetune, finetune_config, plan_finetuning
    from hpdm_core.training.origin import open_origin
    from hpdm_core.training.run import check_place, rank_rows

    origin = open_origin(base)
    config = finetune_config(origin, preset, overrides or [], frames=frames, size=size)
    store, missing = store_or_error(config, data, dry_run=dry_run)
    plan = plan_finetuning(origin, config, store)
    for phase in plan.training.phases if dry_run or nproc > 1 else ():
        rank_rows(phase.batch_size, phase.micro_batch, nproc)
    if dry_run:
        console.print_result(dump_config(plan.training.config) + "\n" + describe(plan, store, run))
        if missing is not None:
            raise missing
        return
    if nproc > 1:
        check_place(run)
        raise typer.Exit(launch(command_line(context), nproc, device))
    for line in describe(plan, store, run).splitlines():
        console.print_note(line)
    result = finetune(origin, config, store, run, time_limit=limit, device=device)
    console.print_result(f"trained {result.videos_seen:,} videos in {result.step:,} steps: {result.weights}")
    console.print_note(f"next: hpdm sample --ckpt {run}")


def describe(plan: FinetunePlan, store: Path | None, run: Path) -> str:
    """The plan in lines for people."""
    origin, growth = plan.origin, plan.growth
    width = max(len(part.name) for part in growth.parts)
    lines = [
        f"base: {origin.file}, step {origin.header.step:,}, sha256 {origin.sha256[:12]}",
        *(f"  {part.name:<{width}}  {part.status:<6}  {part.note}".rstrip() for part in growth.parts),
        f"reused parameters: {growth.reused:,}",
        f"new parameters: {sum(growth.new.values()):,}",
        *(f"  {name}  {count:,}" for name, count in growth.new.items()),
    ]
    if growth.left_out:
        lines.append(f"left out: {sum(growth.left_out.values()):,} parameters of the base")
        lines += [f"  {name}  {count:,}" for name, count in growth.left_out.items()]
    if origin.checkpoint is None:
        lines.append("optimiser state: none, a weights file holds none; its averages start from zero")
    else:
        lines.append(f"optimiser state: kept for {plan.moments:,} of {plan.trained:,} parameters")
    before, after = growth.block_evals
    return "\n".join(
        [
            *lines,
            f"cost of one training video: {before} block evaluations before, {after} after (x{after / before:.2g})",
            *_costs("before", plan.before),
            *_costs("after", plan.training.sampling),
            describe_training(plan.training, store, run),
        ]
    )


def _costs(when: str, outline: Outline) -> list[str]:
    """What sampling one video takes, by stage."""
    size = f"{outline.frames}x{outline.size[0]}x{outline.size[1]}"
    total = sum(stage.block_evals for stage in outline.stages)
    parts = ", ".join(f"{stage.name} {stage.block_evals:,}" for stage in outline.stages)
    return [f"cost of sampling one video {when}: {size}, {total:,} block evaluations ({parts})"]
