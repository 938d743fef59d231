"""`hpdm prepare-data`: decode videos once into a store that training reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from hpdm_cli import console
from hpdm_cli.launch import given_words
from hpdm_cli.options import DryRun, Workers, parse_share, parse_size, parse_tolerance
from hpdm_core.data.backends import BACKENDS, available_backends
from hpdm_core.data.clip import Recipe
from hpdm_core.data.codecs import size_name
from hpdm_core.data.prepare import (
    PrepareOptions,
    Progress,
    Summary,
    available_cores,
    prepare_share,
    prepare_store,
)
from hpdm_core.data.sources.base import Scan, SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.errors import ConfigError
from hpdm_core.video import frame_pyramid_sizes

RAW_UP_TO = 128 * 128
HEARTBEAT_SECONDS = 5.0

Kind = Literal["auto", "ucf101", "folder", "frames", "csv", "jsonl", "synthetic"]

FLAGS = {
    "split": "--split",
    "split_index": "--split-index",
    "lists": "--lists",
    "test_fraction": "--test-fraction",
    "path_column": "--path-column",
    "caption_column": "--caption-column",
    "label_column": "--label-column",
    "fps": "--fps",
    "num_clips": "--num",
    "num_frames": "--frames",
    "seed": "--seed",
    "style": "--style",
    "frame_step": "--frame-step",
}
"""Fields of `SourceOptions` and their options on the command line."""

NOT_OF_THE_STORE = ("out", "source", "workers", "engine", "shards", "dry_run")
"""Parameters that a store does not record: its place, which may change, and what belongs to one machine or one run.

The source is recorded as it was found to be."""


def prepare_data(
    context: typer.Context,
    src: Annotated[Path | None, typer.Argument(metavar="[SRC]", help="Folder, table or video file.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="STORE", help="Folder of the store.")],
    source: Annotated[Kind, typer.Option("--source", help="Kind of source.")] = "auto",
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Size of the finest frames.")] = "256x256",
    levels: Annotated[
        int | None,
        typer.Option("--levels", min=1, help="How many frame sizes, each half the one before; all if not given."),
    ] = None,
    codec: Annotated[
        Literal["raw", "jpeg"] | None, typer.Option("--codec", help="raw up to 128x128, jpeg above.")
    ] = None,
    fit: Annotated[Literal["crop", "stretch"], typer.Option("--fit", help="Cut the centre, or distort.")] = "crop",
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", min=1, help="Keep at most this many first frames of a clip.")
    ] = None,
    split: Annotated[Literal["train", "test", "all"], typer.Option("--split", help="Part of the source.")] = "all",
    split_index: Annotated[int, typer.Option("--split-index", min=1, max=3, help="Official UCF-101 split.")] = 1,
    lists: Annotated[
        Path | None, typer.Option("--lists", metavar="DIR", help="UCF-101's trainlist01.txt and so on.")
    ] = None,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", min=0.0, max=0.9, help="Split by group instead of by lists.")
    ] = 0.0,
    path_column: Annotated[str | None, typer.Option("--path-column", help="Column of a table: the video.")] = None,
    caption_column: Annotated[str | None, typer.Option("--caption-column", help="Its caption.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="Its class.")] = None,
    fps: Annotated[float | None, typer.Option("--fps", min=0.01, help="Frame rate of folders of frames.")] = None,
    num: Annotated[int, typer.Option("--num", min=1, help="Synthetic: number of clips.")] = 100,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Synthetic: frames per clip.")] = 24,
    seed: Annotated[int, typer.Option("--seed", help="Synthetic: seed.")] = 0,
    frame_step: Annotated[
        int, typer.Option("--frame-step", min=1, metavar="N", help="Synthetic: show every N-th frame only.")
    ] = 1,
    style: Annotated[
        Literal["rich", "plain", "scenes"],
        typer.Option("--style", help="Synthetic: textures and moving cameras, neither, or bold scenes with captions."),
    ] = "rich",
    max_bad: Annotated[str, typer.Option("--max-bad", metavar="1%|N", help="How many clips may fail.")] = "1%",
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="SECONDS", min=0.1, help="Longest time for one clip.")
    ] = 120.0,
    backends: Annotated[
        str, typer.Option("--decoders", metavar="A,B", help="Decoders in the order to try.")
    ] = ",".join(BACKENDS),
    workers: Workers = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="This machine, or the Ray cluster at RAY_ADDRESS.")
    ] = "local",
    shards: Annotated[
        str | None, typer.Option("--shards", metavar="I/N", help="Make the I-th of N shares, as one of N jobs.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Decode videos once into a store for training.

    The same command again continues an interrupted preparation, and tries clips again that failed for a reason that
    may pass (timeout, permission, missing …). Files that cannot be decoded are listed, with reasons, in
    STORE/quarantine.jsonl; more of them than --max-bad is exit code 3. Jobs with --shards 1/N to N/N make one store
    together: the last of them completes it, or, where one was lost, the same command without --shards.
    """
    options = SourceOptions(
        kind=source,
        path=src,
        split=split,
        split_index=split_index,
        lists=lists,
        test_fraction=test_fraction,
        path_column=path_column,
        caption_column=caption_column,
        label_column=label_column,
        fps=fps,
        num_clips=num,
        num_frames=frames,
        seed=seed,
        style=style,
        frame_step=frame_step,
    )
    finest = parse_size(size)
    recipe = Recipe(
        sizes=_sizes(finest, levels),
        codec=codec or ("raw" if finest[0] * finest[1] <= RAW_UP_TO else "jpeg"),
        fit=fit,
        max_frames=max_frames,
        backends=tuple(name.strip() for name in backends.split(",")),
    )
    settings = PrepareOptions(parse_tolerance(max_bad), deadline, workers or None, engine)
    share = parse_share(shards) if shards else None
    scan = scan_source(options)
    words = ["hpdm", "prepare-data", *given_words(context, *NOT_OF_THE_STORE), "--source", scan.kind]
    console.print_note(_plan_text(scan, recipe, settings, out))
    for name in options.unread(scan.kind):
        console.print_note(f"warning: {FLAGS.get(name, options.path)} is not used by --source {scan.kind}")
    if dry_run:
        return
    summary = _run(scan, out, recipe, settings, share, shlex.join(words))
    if summary is not None:
        console.print_result(_summary_text(summary))
        return
    console.print_note(f"share {shards} is made; the last job, or this command without --shards, completes {out}")


def _sizes(finest: tuple[int, int], levels: int | None) -> tuple[tuple[int, int], ...]:
    """The frame sizes of the store, finest first: `levels` of them, or all that there are."""
    sizes = frame_pyramid_sizes(finest)
    if levels is not None and levels > len(sizes):
        raise ConfigError(
            f"--levels {levels}: frames of {size_name(finest)} allow {len(sizes)} at most "
            f"({', '.join(map(size_name, sizes))})",
            hint=f"give --levels {len(sizes)}, or a --size that can be halved further: even sides of 16 or more",
        )
    return sizes[:levels]


def _run(
    scan: Scan, out: Path, recipe: Recipe, settings: PrepareOptions, share: tuple[int, int] | None, command: str
) -> Summary | None:
    """The summary of the store; None where other jobs have still to make their shares of it."""
    with console.progress("prepare", unit="clips", heartbeat_seconds=HEARTBEAT_SECONDS) as shown:

        def show(progress: Progress) -> None:
            notes = {"kept": progress.kept, "bad": progress.bad, "frames": progress.frames}
            shown.update(progress.done, total=progress.total, **notes)

        if share is None:
            return prepare_store(scan, out, recipe, settings, command=command, on_progress=show)
        return prepare_share(scan, out, recipe, settings, share, command=command, on_progress=show)


def _plan_text(scan: Scan, recipe: Recipe, settings: PrepareOptions, out: Path) -> str:
    lines = [
        f"source    {scan.kind}: {len(scan.clips)} clips, {len(scan.classes)} classes",
        *(f"          {note}" for note in scan.notes),
        *(f"          {problem.path}: {problem.reason}" for problem in scan.problems),
        f"store     {out}, {recipe.codec}, frames of {', '.join(f'{h}x{w}' for h, w in recipe.sizes)}",
        f"decoders  {', '.join(available_backends(recipe.backends))}; "
        f"{_workers_text(settings)}, at most {settings.deadline:g} s a clip",
    ]
    return "\n".join(lines)


def _workers_text(settings: PrepareOptions) -> str:
    if settings.engine == "ray":
        return f"{settings.workers or 'all'} workers of Ray"
    return f"{settings.workers or available_cores()} workers"


def _summary_text(summary: Summary) -> str:
    lines = [
        f"kept         {summary.num_clips} clips, {summary.num_frames} frames",
        f"quarantined  {summary.num_bad}" + "".join(f", {n} {reason}" for reason, n in summary.reasons.items()),
        f"store        {summary.store} ({summary.num_bytes / 2**20:.1f} MiB)",
        f"fingerprint  {summary.fingerprint[:16]}",
    ]
    return "\n".join(lines)
