"""`hpdm eval-fvd`: score generated videos against real ones by a named protocol."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpdm_cli import console
from hpdm_cli.generated import NO_CAPTIONS, Inputs, open_fake
from hpdm_cli.launch import command_line, launch, world
from hpdm_cli.options import Device, DryRun, Json, Nproc, parse_size, require_finite
from hpdm_cli.results import require_json_file, to_stdout, write_json_text
from hpdm_core.errors import ConfigError, ThresholdNotMet

if TYPE_CHECKING:
    from hpdm_core.metrics.deal import Deal
    from hpdm_core.metrics.evaluate import Evaluation
    from hpdm_core.metrics.observer import Observer
    from hpdm_core.metrics.protocol import Protocol
    from hpdm_core.metrics.sources import VideoSource

DEFAULT_PROTOCOL = "fvd2048_16f"
_INPUTS = "Inputs"
_NETWORKS = "Networks"


def eval_fvd(
    context: typer.Context,
    fake: Annotated[
        str, typer.Option("--fake", metavar="DIR|STORE|CKPT", help="Generated videos, or a model to sample from.")
    ] = "",
    real: Annotated[
        Path | None, typer.Option("--real", metavar="STORE|DIR|STATS", help="Real videos or their statistics.")
    ] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="NAME|FILE", help="How to measure.")
    ] = DEFAULT_PROTOCOL,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="LIST", help="fvd,kvd,jedi,is,frame,motion,seam,clipsim.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option("--detector", metavar="NAME", help="i3d, random-i3d (not FVD), or module:factory.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="I3D weights.")] = None,
    c3d_weights: Annotated[Path | None, typer.Option("--c3d-weights", metavar="FILE", help="C3D weights.")] = None,
    clip_weights: Annotated[Path | None, typer.Option("--clip-weights", metavar="FILE", help="CLIP weights.")] = None,
    allow_imagenet: Annotated[
        bool, typer.Option("--allow-imagenet", help="Accept the I3D that FVD is not defined on.")
    ] = False,
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", min=2, help="Number of clips on both sides; changes the hash.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Frame size of both sides, e.g. of a pyramid level.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the protocol; repeatable.")
    ] = None,
    level: Annotated[
        int | None,
        typer.Option("--level", metavar="L", min=0, help="Sample and score this level of --fake CKPT."),
    ] = None,
    tile: Annotated[
        str | None, typer.Option("--tile", metavar="TxHxW[/TxHxW]", help="Tile, and step if not the tile, for seam.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Captions, one per line in video order.")
    ] = None,
    json_file: Json = None,
    save_stats: Annotated[
        Path | None, typer.Option("--save-stats", metavar="FILE", help="Keep the real features, for --real.")
    ] = None,
    max_fvd: Annotated[float | None, typer.Option("--max-fvd", metavar="V", help="Exit 6 above this FVD.")] = None,
    min_is: Annotated[float | None, typer.Option("--min-is", metavar="V", help="Exit 6 below this IS.")] = None,
    watch: Annotated[
        Path | None, typer.Option("--watch", metavar="RUN", help="Score each new checkpoint of a run as it appears.")
    ] = None,
    device: Device = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Clips per network call; changes no result.")] = 8,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Reading threads.")] = 4,
    nproc: Nproc = 1,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep real features.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Measure generated videos against real ones: FVD and its relatives.

    Exit codes: 0 done, 3 unusable videos, 5 missing weights, 6 a threshold was not met. One line per metric on
    a pipe, a table on a terminal, everything with --json FILE, and alone with --json -. Offline.
    """
    require_finite({"--max-fvd": max_fvd, "--min-is": min_is})
    chosen = _protocol(protocol, detector, n, size, overrides or [])
    names = _metrics(metrics or "", chosen, max_fvd, min_is)
    if dry_run:
        from hpdm_core.config.document import dump_document

        console.print_result(dump_document(chosen.model_dump(mode="json")).rstrip())
        return
    _check_usage(fake, watch, {"--fake": fake or None, "--json": json_file, "--max-fvd": max_fvd, "--min-is": min_is,
                                "--nproc": nproc if nproc > 1 else None})  # fmt: skip
    require_json_file(json_file)
    from hpdm_core.metrics.deal import Deal
    from hpdm_core.metrics.evaluate import check_evaluation
    from hpdm_core.nn.devices import pick_device

    settings: dict[str, Any] = {
        "real": real, "metrics": names, "weights": weights, "c3d_weights": c3d_weights,
        "allow_imagenet": allow_imagenet, "device": str(pick_device(device)), "deal": Deal(batch), "workers": workers,
        "use_cache": not no_cache, "save_stats": save_stats,
    }  # fmt: skip
    inputs = Inputs(tile, clip_weights, prompts, level)
    if watch is not None:
        from hpdm_cli.watch import watch_run

        key = _watch_key(chosen, settings, inputs)
        watch_run(watch, key, lambda path: _score(path, chosen, settings, inputs), write_json)
        return
    if nproc > 1:
        check_evaluation(_job(fake, chosen, settings, inputs))  # what is wrong is said once, before any rank starts
        raise typer.Exit(launch(command_line(context), nproc, device))
    with _dealt(batch, device) as deal:
        result = _score(fake, chosen, {**settings, "deal": deal}, inputs)
    if not deal.main:
        return
    show(result, figures=not to_stdout(json_file))  # first: a full disk must not cost the numbers
    if json_file is not None:
        write_json(json_file, result)
    check_thresholds(result, max_fvd, min_is)


def _protocol(name: str, detector: str | None, n: int | None, size: str | None, overrides: list[str]) -> Protocol:
    """The protocol with the command line's changes, and a name that tells of them."""
    from hpdm_core.metrics.protocol import load_protocol

    changes = list(overrides)
    if size is not None:
        changes.append("clip.size=[{}, {}]".format(*parse_size(size)))
    if detector is not None:
        changes.append(f"detector.name={detector}")
    if detector == "random-i3d":
        changes.append("inception.network=detector")
    loaded = load_protocol(name, changes)
    if n is not None:
        every = loaded.real.select == "all"
        loaded = loaded.with_count(n)
        changes.append(f"n={n}")
        console.print_once(f"--n {n} changes protocol {loaded.name}: the result compares only with others of --n {n}")
        if every:
            console.print_once(f"{loaded.name} takes all real clips; with --n it takes a random {n} of them")
    return loaded.model_copy(update={"name": f"{loaded.name} ({', '.join(changes)})"}) if changes else loaded


def _metrics(listed: str, protocol: Protocol, max_fvd: float | None, min_is: float | None) -> tuple[str, ...]:
    """The metrics listed, else the protocol's, with those that a threshold is set on."""
    from hpdm_core.metrics.scores import parse_metrics

    names = tuple(part.strip() for part in listed.split(",") if part.strip()) or protocol.metrics
    bounded = [name for name, bound in (("fvd", max_fvd), ("is", min_is)) if bound is not None]
    return parse_metrics((*names, *bounded))


def _check_usage(fake: str, watch: Path | None, given: dict[str, Any]) -> None:
    """Refuse a call without generated videos, and options that `--watch` would have to ignore."""
    if not fake and watch is None:
        raise ConfigError("no generated videos were given", hint="give --fake DIR, STORE or CKPT")
    ignored = [name for name, value in given.items() if value is not None]
    if watch is not None and ignored:
        raise ConfigError(
            f"--watch scores each checkpoint of a run and takes no {', '.join(ignored)}",
            hint="it writes its results to RUN/scores; leave these options away",
        )


def _watch_key(protocol: Protocol, settings: dict[str, Any], inputs: Inputs) -> str:
    """A name for how `--watch` measures, known before any checkpoint is loaded."""
    from hpdm_core.metrics.protocol import hash_record

    names = ("real", "metrics", "weights", "c3d_weights")
    asked = {name: _plain(settings[name]) for name in names} | {k: _plain(v) for k, v in asdict(inputs).items()}
    return hash_record({"protocol": protocol.record(), **asked})


def _plain(value: Any) -> Any:
    return str(value.resolve()) if isinstance(value, Path) else value


@contextmanager
def _dealt(batch: int, device: str | None) -> Iterator[Deal]:
    """The share of this process in the evaluation: all of it, or its rank's under a launcher."""
    from hpdm_core.metrics.deal import Deal

    if world() == (0, 1):
        yield Deal(batch)
        return
    from hpdm_core.training.distributed import joined_world

    with joined_world(device) as ranks:
        yield Deal(batch, ranks.rank, ranks.size, ranks.gather)


def _job(fake: str, protocol: Protocol, settings: dict[str, Any], inputs: Inputs) -> Evaluation:
    from hpdm_core.metrics.evaluate import Evaluation

    source, about, protocol = open_fake(Path(fake), protocol, settings["device"], inputs)
    observers = _observers(settings["metrics"], protocol, source, inputs, settings["device"])
    return Evaluation(protocol, source, observers=observers, about_fake=about, **settings)


def _score(fake: str, protocol: Protocol, settings: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """One evaluation, with progress on stderr."""
    from hpdm_core.metrics.evaluate import evaluate

    job = _job(fake, protocol, settings, inputs)
    for name in _unread(job, inputs):
        console.print_note(f"warning: {name} is not read: nothing that is measured needs it")
    if job.about_fake.get("captions") == NO_CAPTIONS:
        console.print_note(f"warning: {fake} reads text and is sampled without any: give --prompts FILE, one a line")
    with ExitStack() as stack:
        job.progress = _progress(stack)
        return evaluate(job)


def _unread(job: Evaluation, inputs: Inputs) -> list[str]:
    """The files and settings that were given and that no chosen metric, network or model reads."""
    from hpdm_core.metrics.evaluate import needs_c3d, needs_detector

    metrics = job.metrics
    own = needs_detector(metrics, job.protocol) and job.protocol.detector.name != "random-i3d"
    captions = "clipsim" in metrics or "captions" in job.about_fake
    read = {
        "--weights": (job.weights, own),
        "--c3d-weights": (job.c3d_weights, needs_c3d(metrics, job.protocol)),
        "--clip-weights": (inputs.clip_weights, "clipsim" in metrics),
        "--tile": (inputs.tile, "seam" in metrics),
        "--prompts": (inputs.prompts, captions),
    }
    return [name for name, (given, needed) in read.items() if given is not None and not needed]


def _progress(stack: ExitStack) -> Callable[[str, int, int], None]:
    """A counter per side; the next side's closes it, since a terminal shows one at a time."""
    bars: dict[str, console.Progress] = {}

    def advance(what: str, clips: int, total: int) -> None:
        if what not in bars:
            stack.close()
            bars[what] = stack.enter_context(console.progress(what, total, unit="clips"))
        bars[what].advance(clips)

    return advance


def _observers(
    names: tuple[str, ...], protocol: Protocol, source: VideoSource, inputs: Inputs, device: str
) -> dict[str, Observer]:
    """What is measured per generated video beside the networks."""
    observers: dict[str, Observer] = {}
    if "seam" in names and inputs.tile is not None:
        from hpdm_core.metrics.seams import seam_observer

        observers["seam"] = seam_observer(*_tile(inputs.tile))
    if "clipsim" in names:
        from hpdm_core.metrics.clipsim import build_clipsim, read_captions

        captions = read_captions(inputs.prompts, source, protocol.fake.count)
        observers["clipsim"] = build_clipsim(inputs.clip_weights, captions, device)
    return observers


def _tile(text: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """`16x64x64/8x32x32` as tile and step (time, height, width)."""
    try:
        parts = [tuple(int(number) for number in part.split("x")) for part in text.split("/")]
        tile, step = parts[0], parts[-1]
        if len(parts) > 2 or len(tile) != 3 or len(step) != 3:
            raise ValueError(text)
    except ValueError as error:
        raise ConfigError(f"cannot read --tile {text!r}", hint="for example 16x64x64, or 16x64x64/16x48x48") from error
    return (tile[0], tile[1], tile[2]), (step[0], step[1], step[2])


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all, so that a script never reads half of it; `-` is standard output."""
    write_json_text(path, json.dumps(result, indent=2, allow_nan=False))


def show(result: dict[str, Any], *, figures: bool = True) -> None:
    """The result for people: warnings to stderr; `figures` as a table on a terminal, one line per metric elsewhere."""
    for warning in result["warnings"]:
        console.print_note(f"warning: {warning}")
    if not figures:
        return
    tail = f"{result['protocol']['name']} [{result['protocol_hash']}]"
    rows = [(entry["label"], *_figures(entry)) for entry in result["metrics"].values()]
    if not sys.stdout.isatty():
        for row in rows:
            console.print_result(" ".join((*(cell for cell in row if cell), tail)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=tail, title_justify="left")
    for heading in ("metric", "value", "95 % interval", "limit N to infinity", "clips"):
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _figures(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    """Value, interval, limit and counts of a metric, as text."""
    interval = "({:.4g} to {:.4g})".format(*entry["ci95"]) if entry["ci95"] else ""
    limit = entry.get("limit")
    limit_text = f"limit {limit['value']:.4g} ± {limit['standard_error']:.2g}" if limit else ""
    counts = f"N={entry['n_fake']}" + (f"/{entry['n_real']}" if entry["n_real"] is not None else "")
    return f"{entry['value']:.6g}", interval, limit_text, counts


def check_thresholds(result: dict[str, Any], max_fvd: float | None, min_is: float | None) -> None:
    """Raise ThresholdNotMet, naming value and threshold, unless all hold."""
    failed = []
    for name, bound, sign in (("fvd", max_fvd, 1.0), ("is", min_is, -1.0)):
        if bound is None:
            continue
        entry = result["metrics"][name]
        if not sign * entry["value"] <= sign * bound:
            relation = "above" if sign > 0 else "below"
            failed.append(f"{entry['label']} {entry['value']:.6g} is {relation} the threshold {bound:g}")
    if failed:
        raise ThresholdNotMet("; ".join(failed))
