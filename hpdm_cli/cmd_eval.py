"""`hpdm eval-fvd`: score generated videos against real ones by a named protocol."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpdm_cli import console
from hpdm_cli.options import Device, DryRun, Json, parse_size
from hpdm_core.errors import ConfigError, DataError, ThresholdNotMet

if TYPE_CHECKING:
    from hpdm_core.metrics.observer import Observer
    from hpdm_core.metrics.protocol import Protocol
    from hpdm_core.metrics.sources import VideoSource
    from hpdm_core.sampling.stage import Outline

DEFAULT_PROTOCOL = "fvd2048_16f"
_INPUTS = "Inputs"
_NETWORKS = "Networks"


def eval_fvd(
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
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep real features.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Measure generated videos against real ones: FVD and its relatives.

    Exit codes: 0 done, 3 unusable videos, 5 missing weights, 6 a threshold was not met. One line per metric on
    a pipe, a table on a terminal, everything with --json. Offline.
    """
    chosen = _protocol(protocol, detector, n, size, overrides or [])
    names = tuple(part.strip() for part in (metrics or "").split(",") if part.strip()) or chosen.metrics
    names = _with_thresholds(names, max_fvd, min_is)
    if dry_run:
        from hpdm_core.config.document import dump_document

        console.print_result(dump_document(chosen.model_dump(mode="json")).rstrip())
        return
    _check_usage(fake, watch, {"--fake": fake or None, "--json": json_file, "--max-fvd": max_fvd, "--min-is": min_is})
    if json_file is not None:
        from hpdm_core.metrics.real_cache import require_writable

        require_writable(json_file, "--json")
    from hpdm_core.nn.devices import pick_device

    settings: dict[str, Any] = {
        "real": real, "metrics": names, "weights": weights, "c3d_weights": c3d_weights,
        "allow_imagenet": allow_imagenet, "device": str(pick_device(device)), "batch_size": batch, "workers": workers,
        "use_cache": not no_cache, "save_stats": save_stats,
    }  # fmt: skip
    inputs = Inputs(tile, clip_weights, prompts, level)
    if watch is not None:
        from hpdm_cli.watch import watch_run

        key = _watch_key(chosen, settings, inputs)
        watch_run(watch, key, lambda path: _score(path, chosen, settings, inputs), write_json)
        return
    result = _score(fake, chosen, settings, inputs)
    if json_file is not None:
        write_json(json_file, result)
    show(result)
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
        console.print_note(f"--n {n} changes protocol {loaded.name}: the result compares only with others of --n {n}")
        if every:
            console.print_note(f"{loaded.name} takes all real clips; with --n it takes a random {n} of them")
    return loaded.model_copy(update={"name": f"{loaded.name} ({', '.join(changes)})"}) if changes else loaded


def _with_thresholds(names: tuple[str, ...], max_fvd: float | None, min_is: float | None) -> tuple[str, ...]:
    """The metrics, with those that a threshold is set on."""
    wanted = list(names)
    wanted += ["fvd"] if max_fvd is not None and "fvd" not in names else []
    wanted += ["is"] if min_is is not None and "is" not in names else []
    return tuple(wanted)


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


@dataclass(frozen=True)
class Inputs:
    """What some metrics and some generators need beside the videos."""

    tile: str | None = None
    clip_weights: Path | None = None
    prompts: Path | None = None
    level: int | None = None


def _watch_key(protocol: Protocol, settings: dict[str, Any], inputs: Inputs) -> str:
    """A name for how `--watch` measures, known before any checkpoint is loaded."""
    from hpdm_core.metrics.protocol import hash_record

    names = ("real", "metrics", "weights", "c3d_weights")
    asked = {name: _plain(settings[name]) for name in names} | {k: _plain(v) for k, v in asdict(inputs).items()}
    return hash_record({"protocol": protocol.record(), **asked})


def _plain(value: Any) -> Any:
    return str(value.resolve()) if isinstance(value, Path) else value


def _score(fake: str, protocol: Protocol, settings: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """One evaluation, with progress on stderr."""
    from hpdm_core.metrics.evaluate import Evaluation, evaluate

    source, about, protocol = open_fake(Path(fake), protocol, settings["device"], inputs)
    observers = _observers(settings["metrics"], protocol, source, inputs, settings["device"])
    with ExitStack() as stack:
        job = Evaluation(protocol, source, observers=observers, about_fake=about, **settings)
        job.progress = _progress(stack)
        return evaluate(job)


def _progress(stack: ExitStack) -> Callable[[str, int], None]:
    """A counter per side, opened when its first batch is done."""
    bars: dict[str, console.Progress] = {}

    def advance(what: str, clips: int) -> None:
        if what not in bars:
            bars[what] = stack.enter_context(console.progress(what, unit="clips"))
        bars[what].advance(clips)

    return advance


def open_fake(
    path: Path, protocol: Protocol, device: str, inputs: Inputs
) -> tuple[VideoSource, dict[str, Any], Protocol]:
    """The generated side: videos on disk, or a checkpoint that is sampled from as clips are asked for.

    With what is to be said of it, and the protocol: that of a pyramid level has the level's size and frame stride.
    """
    from hpdm_core.metrics.sources import open_source

    is_model = (
        path.suffix == ".safetensors" or (path / "checkpoints").is_dir() or (path / "weights.safetensors").is_file()
    )
    if is_model:
        return _open_model(path, protocol, device, inputs)
    if inputs.level is not None:
        raise ConfigError(f"--level needs a model to sample from, and {path} is none", hint="give --fake CKPT")
    return open_source(path), {"path": str(path)}, protocol


def _open_model(
    path: Path, protocol: Protocol, device: str, inputs: Inputs
) -> tuple[VideoSource, dict[str, Any], Protocol]:
    """A checkpoint as a source of the protocol's number of videos, from seed 0 on; one that reads text is told it."""
    from hpdm_core.families.generate import enough_frames, iterate_samples, outline, sample_options
    from hpdm_core.families.prompts import text_tokens
    from hpdm_core.families.weights import load_model
    from hpdm_core.metrics.clipsim import read_captions
    from hpdm_core.metrics.protocol import hash_record
    from hpdm_core.metrics.sources import GeneratedSource

    model, count, level = load_model(path), protocol.fake.count, inputs.level
    told = inputs.prompts is not None and text_tokens(model) is not None
    texts = read_captions(inputs.prompts, None, count) if told else []
    changes: dict[str, Any] = {} if level is None else {"level": level}
    options = sample_options(model, changes).model_dump(mode="json")
    made = outline(model, frames=None, size=None, **changes)
    span = _check_frames(path, made.frames, protocol)
    # Where in its video a clip begins counts from the end too, unless it is the start.
    frames = enough_frames(model, span, **changes) if protocol.fake.start == "first" else None
    if level is not None:
        protocol = _at_level(protocol, level, made)
    about = {
        "path": str(path), "checkpoint_sha256": model.sha256, "step": model.header.step, "ema": model.header.ema,
        "videos_seen": model.header.videos_seen, "sample_options": options, "seeds": f"0-{count - 1}",
        "frames": frames or made.frames,
    }  # fmt: skip

    def make(number: int) -> Any:
        made = iterate_samples(model, range(number), prompts=texts, frames=frames, device=device, **changes)
        return ((item.seed, item.video) for item in made)

    identity = hash_record(
        {"checkpoint": model.sha256, "options": options, "seeds": count, "prompts": texts, "frames": frames}
    )
    return GeneratedSource(make, count, identity), about, protocol


def _check_frames(path: Path, frames: int, protocol: Protocol) -> int:
    """The frames that a clip spans. Refuses a model whose videos are shorter, before it makes one."""
    span = (protocol.clip.frames - 1) * protocol.fake.stride + 1
    if frames < span:
        raise DataError(
            f"{path} makes videos of {frames} frames; protocol {protocol.name} needs {span}",
            hint=f"choose a protocol with shorter clips, or --set clip.frames={frames}",
        )
    return span


def _at_level(protocol: Protocol, level: int, made: Outline) -> Protocol:
    """The protocol for a pyramid level: real clips get the level's size and show every n-th frame as it does."""
    size = protocol.clip.size or made.size
    stride = protocol.real.stride * made.frame_step
    changed = protocol.updated({"clip": {"size": list(size)}, "real": {"stride": stride}})
    return changed.model_copy(update={"name": f"{protocol.name} (level {level})"})


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
    """Write a result atomically, so that a script never reads half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def show(result: dict[str, Any]) -> None:
    """The result for people: a table on a terminal, one line per metric elsewhere; warnings to stderr."""
    for warning in result["warnings"]:
        console.print_note(f"warning: {warning}")
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
