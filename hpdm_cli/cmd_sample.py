"""`hpdm sample`: generate videos from a trained model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpdm_cli import console
from hpdm_cli.launch import command_line, launch, world
from hpdm_cli.options import (
    Device,
    DryRun,
    Nproc,
    Res,
    Seeds,
    parse_duration,
    parse_sample_keys,
    parse_seeds,
    parse_size,
)
from hpdm_core.errors import ConfigError
from hpdm_core.families import shipped

if TYPE_CHECKING:
    from hpdm_core.config.schema import SampleSection
    from hpdm_core.families.generate import Sample
    from hpdm_core.families.prompts import Prompts
    from hpdm_core.families.weights import LoadedModel
    from hpdm_core.sampling.engine import Progress
    from hpdm_core.sampling.stage import Outline

FORMATS = ("mp4", "gif", "png", "npz")
MANIFEST = "samples.json"
PER_STAGE = {"steps": int, "guidance": float, "solver": str}
"""Options that are lists, one value a stage; the last value is that of all later stages too."""
DEFAULT_FPS = 25.0
"""For weights that know no frame rate."""


def ckpt_help() -> str:
    """The help of --ckpt, which says whether there is a model in the box."""
    box = shipped.SHIPPED_MODEL.stem
    return "A run directory or weights file." + (
        f" Without it: the model in the box, {box}." if shipped.has_shipped_model() else ""
    )


def sample(
    context: typer.Context,
    ckpt: Annotated[Path | None, typer.Option("--ckpt", metavar="RUN|FILE", help=ckpt_help())] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to show; repeatable.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="One prompt per line, or JSONL with seeds.")
    ] = None,
    negative: Annotated[str, typer.Option("--negative", metavar="TEXT", help="What guidance leads away from.")] = "",
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME|all", help="Class to show; repeatable, or all.")
    ] = None,
    num: Annotated[int | None, typer.Option("--num", min=1, help="How many: seeds 0 to N - 1.")] = None,
    seeds: Seeds = None,
    res: Res = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            metavar="T",
            min=1,
            help="The first T frames of that size; of models that chain clips, T in all.",
        ),
    ] = None,
    level: Annotated[int | None, typer.Option("--level", min=0, help="Stop at this pyramid level.")] = None,
    steps: Annotated[str | None, typer.Option("--steps", help="Steps per stage, e.g. 64 or 64,32,16.")] = None,
    solver: Annotated[str | None, typer.Option("--solver", help="Solver per stage, e.g. heun,euler.")] = None,
    overlap: Annotated[str | None, typer.Option("--overlap", help="none, spatial, time or full.")] = None,
    phases: Annotated[
        str | None, typer.Option("--phases", help="Overlapping tiles: together, or alternate (fewer calls).")
    ] = None,
    window: Annotated[str | None, typer.Option("--window", help="Blending of tiles: uniform or smooth.")] = None,
    guidance: Annotated[
        str | None, typer.Option("--guidance", metavar="W", help="Guidance weight(s); 1 is none.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, tf32 or bf16.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Few steps: the model's `sample.fast`.")] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="5s", help="The best measured setting for this time a video.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the sample section.")
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Videos held at once; more speed only with --set chunk=N.")
    ] = 1,
    formats: Annotated[str, typer.Option("--format", help="Comma list of mp4, gif, png, npz.")] = "mp4,npz",
    fps: Annotated[
        float | None, typer.Option("--fps", min=1.0, help="Frame rate of the training clips, if not as in the weights.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the videos go.")] = Path("samples"),
    device: Device = None,
    nproc: Nproc = 1,
    dry_run: DryRun = False,
) -> None:
    """Generate videos from a trained model.

    Seed k always gives the same video, whatever is made beside it. Files are named by seed; those that
    exist are kept, so an interrupted command continues where it stopped. Of n prompts or classes, seed k
    shows number k mod n. A line of a JSONL file may say its seeds: {"prompt": "a red star", "seeds": [0, 1]}.

    --res chooses the pyramid level, the largest by default; --frames its first frames, which are those of the
    whole video. Where a level is exactly --frames of --res, that level at its own frame rate is meant.
    """
    chosen_formats = _formats(formats)
    from hpdm_core.families import generate, weights
    from hpdm_core.nn.devices import pick_device

    pick_device(device)  # that it is there: before anything is written
    model = weights.load_model(ckpt)
    texts = _prompts(model, prompt or [], prompts, negative)
    _say_what_is_used(model, ckpt is None, texts)
    options = _options(
        {"steps": steps, "solver": solver, "overlap": overlap, "phases": phases, "window": window, "guidance": guidance,
         "precision": precision, "level": level}, overrides or [], type(model.config.sample).model_fields
    )  # fmt: skip
    size = parse_size(res) if res else None
    named = {k: v for k, v in _named_setting(model, fast, budget, frames, size, device).items() if k not in options}
    asked, options = options, {**named, **options}
    outline = generate.outline(model, frames=frames, size=size, **options)
    wanted = _wanted_seeds(model, num, seeds, classes or [], texts)
    section = generate.sample_options(model, options)
    _check_negative(negative, section)
    labels = generate.labels_of(model, wanted, classes or [])
    _note_surplus(asked, outline, guided=labels is not None or bool(texts) or bool(negative))
    _note_unread(model, section, asked)
    _print_plan(outline, len(wanted))
    if dry_run:
        return
    rate = (fps or model.header.fps or DEFAULT_FPS) / outline.frame_step
    settings = {
        "model": model.sha256, "frames": outline.frames, "size": list(outline.size), "fps": rate,
        "classes": classes or [], "options": section.model_dump(mode="json"),
        **({"prompts": _plain(texts), "negative": negative} if texts or negative else {}),
        **({"joins": list(outline.joins)} if outline.joins else {}),
    }  # fmt: skip
    _claim(out, settings)
    _note_kept(wanted, out, chosen_formats)
    if nproc > 1:
        # What a budget stands for was measured here: ranks that measured it again could choose otherwise.
        chosen = [word for key, value in named.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        if code := launch([*command_line(context, "fast", "budget"), *chosen], nproc, device):
            raise typer.Exit(code)
        console.print_result(_summary(wanted, outline, out))
        return
    rank, ranks = world()  # shares of all seeds, not of the absent ones: other ranks are writing meanwhile
    todo = [seed for seed in wanted[rank::ranks] if not _is_made(out, seed, chosen_formats)]
    made = _with_progress(
        model, todo, outline, classes=classes or [], prompts=texts, negative=negative, frames=frames, size=size,
        batch=batch, device=device, **options,
    )  # fmt: skip
    for item in made:
        _save(item, out, chosen_formats, rate, settings)
    if ranks == 1:
        console.print_result(_summary(wanted, outline, out))


def _summary(seeds: Sequence[int], outline: Outline, out: Path) -> str:
    return f"{len(seeds)} videos of {outline.frames}x{outline.size[0]}x{outline.size[1]} in {out}"


def _formats(text: str) -> tuple[str, ...]:
    found = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    unknown = [f for f in found if f not in FORMATS]
    if unknown or not found:
        raise ConfigError(f"unknown format {', '.join(unknown) or text!r}", hint=f"choose from {', '.join(FORMATS)}")
    return found


def _options(flags: dict[str, Any], overrides: list[str], known: Collection[str]) -> dict[str, Any]:
    """Command-line flags as keys of the sample section; comma lists become lists where the key wants one.

    Raises ConfigError for a flag that is none of the `known` keys of the model at hand.
    """
    for key in flags:
        if flags[key] is not None and key not in known:
            possible = ", ".join(f"--{name}" for name in flags if name in known)
            raise ConfigError(f"--{key} means nothing to this kind of model", hint=f"it takes {possible}")
    options: dict[str, Any] = {}
    for key, kind in PER_STAGE.items():
        if flags[key] is not None:
            options[key] = [_number(part, kind, key) for part in flags[key].split(",")]
    options |= {k: flags[k] for k in ("overlap", "phases", "window", "precision", "level") if flags[k] is not None}
    return options | parse_sample_keys(overrides)


def _note_surplus(asked: dict[str, Any], outline: Outline, *, guided: bool) -> None:
    """Say which of the values asked for belong to no stage, to no solver, or to no class or prompt."""
    from hpdm_core.sampling.solvers import solver_info

    stages, solvers = len(outline.stages), sorted({stage.solver for stage in outline.stages})
    read = {option for name in solvers for option in solver_info(name).options}
    for key in ("churn", "eta"):
        if key in asked and key not in read:
            console.print_once(f"warning: {key} is not used by {' and '.join(solvers)}")
    if "guidance" in asked and not guided:
        console.print_once("warning: --guidance is not used: the model is told no class and no prompt")
    for key in PER_STAGE:
        if len(given := asked.get(key, ())) > stages:
            unused = ", ".join(str(value) for value in given[stages:])
            console.print_once(f"warning: --{key} {unused} is not used: the last stage is {outline.stages[-1].name}")


def _note_unread(model: LoadedModel, section: SampleSection, asked: Collection[str]) -> None:
    """Say what the model's own lists hold for more stages than it has, as those of the base of a larger model do."""
    family, config = type(model.family), model.config.model
    unread = {k: v for k, v in family.unread_entries(config, section).items() if k not in PER_STAGE or k not in asked}
    if unread:
        listed = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in unread.items())
        most = family.most_stages(config)
        console.print_once(f"of each list this model's sampling reads {most} at most, one a stage; not used: {listed}")


def _named_setting(
    model: LoadedModel, fast: bool, budget: str | None, frames: int | None, size: tuple[int, int] | None,
    device: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What `--fast` or `--budget` stands for; other flags change it further."""
    from hpdm_core.families.settings import budget_options, fast_options

    if fast and budget is not None:
        raise ConfigError("give --fast or --budget, not both")
    if fast:
        return fast_options(model)
    if budget is None:
        return {}
    chosen, seconds = budget_options(model, parse_duration(budget), frames=frames, size=size, device=device)
    console.print_note(f"about {seconds:.3g} s a video with " + ", ".join(f"{k}={v}" for k, v in chosen.items()))
    return chosen


def _number(text: str, kind: type, key: str) -> Any:
    try:
        return kind(text.strip())
    except ValueError as error:
        raise ConfigError(
            f"cannot read --{key} {text!r}", hint=f"give numbers, one or one a stage, for example --{key} 4,2,1"
        ) from error


def _prompts(model: LoadedModel, given: list[str], file: Path | None, negative: str) -> Prompts:
    """The prompts asked for. Raises ConfigError if the model reads none, or if they are given twice."""
    from hpdm_core.families.prompts import prompts_of, read_prompts

    if given and file is not None:
        raise ConfigError("give --prompt or --prompts, not both")
    if not all(text.strip() for text in given):
        raise ConfigError("a prompt is empty", hint="leave --prompt away for videos without a prompt")
    texts = given if file is None else read_prompts(file)
    prompts_of(model, (), texts or ([negative] if negative else ()))
    return texts


def _say_what_is_used(model: LoadedModel, boxed: bool, texts: Prompts) -> None:
    """That the model is the one in the box, and that a model which reads text was given none."""
    from hpdm_core.families.prompts import text_tokens

    if boxed:
        console.print_once(f"using the model in the box, {shipped.SHIPPED_MODEL.stem}: procedural shapes, nothing else")
    if text_tokens(model) is not None and not texts:
        example = f'; try --prompt "{shipped.EXAMPLE_PROMPTS[0]}"' if boxed else ""
        console.print_once(f"no --prompt: the videos follow no text{example}")


def _check_negative(negative: str, options: Any) -> None:
    """Say that a negative prompt without guidance does nothing."""
    guidance = getattr(options, "guidance", (1.0,))
    if negative and all(weight == 1.0 for weight in guidance):
        raise ConfigError("--negative does nothing without guidance", hint="add for example --guidance 4")


def _plain(texts: Prompts) -> Any:
    return {str(seed): text for seed, text in texts.items()} if isinstance(texts, Mapping) else list(texts)


def _wanted_seeds(
    model: LoadedModel, num: int | None, seeds: str | None, classes: Sequence[str], texts: Prompts
) -> tuple[int, ...]:
    """The seeds asked for; `--class all` alone means one of each class, prompts alone one of each prompt."""
    if num is not None and seeds is not None:
        raise ConfigError("give --num or --seeds, not both")
    if isinstance(texts, Mapping):
        if num is not None or seeds is not None:
            raise ConfigError("the prompts file says its seeds", hint="leave --num and --seeds away")
        return tuple(texts)
    if seeds is not None:
        return parse_seeds(seeds)
    default = len(model.header.classes) if list(classes) == ["all"] else max(1, len(classes), len(texts))
    return tuple(range(num if num is not None else default))


def _print_plan(outline: Outline, videos: int) -> None:
    for stage in outline.stages:
        console.print_once(
            f"{stage.name}: {stage.frames}x{stage.size[0]}x{stage.size[1]}, {stage.steps} steps of {stage.solver}, "
            f"{stage.tiles} tiles, {stage.tile_calls:,} tile calls"
        )
    calls = sum(s.tile_calls for s in outline.stages)
    console.print_once(f"{videos} videos of {calls:,} tile calls each ({sum(s.block_evals for s in outline.stages):,} "
                       "block evaluations)")  # fmt: skip


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Mark `out` as holding samples of exactly these settings; refuse to mix two kinds in one place."""
    from hpdm_core.data.disk import writing_to
    from hpdm_core.data.shard import write_text_once

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", hint="--out names a folder")
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    manifest = out / MANIFEST
    if not manifest.exists():
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
        write_text_once(manifest, text)  # the ranks of another launcher come here at the same moment
    found = manifest.read_text()
    if found != text:
        raise ConfigError(
            f"{out} holds samples made otherwise: {_changes(found, settings)}",
            hint="choose another --out, or remove that directory",
        )


def _changes(found: str, settings: dict[str, Any]) -> str:
    """What the manifest of earlier samples says otherwise than `settings`."""
    from hpdm_core.metrics.protocol import differences

    try:
        lines = differences(json.loads(found), json.loads(json.dumps(settings)))
    except ValueError:
        return f"{MANIFEST} cannot be read"
    # The hash of another model says nothing to people.
    return ", ".join("another model" if line.startswith("model:") else line for line in lines)


def _path(out: Path, seed: int, form: str) -> Path:
    """Where one format of one seed goes; PNG frames take a directory."""
    name = f"seed_{seed:06d}"
    return out / name if form == "png" else out / f"{name}.{form}"


def _is_made(out: Path, seed: int, formats: Sequence[str]) -> bool:
    """Whether all formats of one seed are there. What is empty, as after a crash of the machine, is not."""
    paths = [_path(out, seed, form) for form in formats]
    return all(any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size for path in paths)


def _note_kept(seeds: Sequence[int], out: Path, formats: Sequence[str]) -> None:
    if kept := sum(_is_made(out, seed, formats) for seed in seeds):
        console.print_once(f"{kept} of {len(seeds)} videos exist in {out} and are kept")


def _with_progress(model: LoadedModel, seeds: Sequence[int], outline: Outline, **kwargs: Any) -> Iterator[Sample]:
    """Samples, while a bar shows network calls over all videos with rate and ETA."""
    from hpdm_core.families.generate import iterate_samples

    tiles = {stage.name: stage.tile_calls / stage.calls for stage in outline.stages}
    total = len(seeds) * sum(s.tile_calls for s in outline.stages)
    with console.progress("sample", total, unit="calls") as bar:

        def on_progress(rows: tuple[int, ...], p: Progress) -> None:
            bar.advance(p.calls * tiles[p.stage] * len(rows), stage=p.stage, step=f"{p.step}/{p.steps}")

        if seeds:
            yield from iterate_samples(model, seeds, on_progress=on_progress, **kwargs)


def _save(item: Sample, out: Path, formats: Sequence[str], fps: float, settings: dict[str, Any]) -> None:
    from hpdm_core.data import write

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    facts = {"seed": item.seed, "class": item.class_name, "prompt": item.prompt, "settings": digest, **settings}
    for form in formats:
        if _is_made(out, item.seed, (form,)):
            continue
        path = _path(out, item.seed, form)
        if form == "mp4":
            write.write_mp4(path, item.video, fps, facts)
        elif form == "gif":
            write.write_gif(path, item.video, fps, facts)
        elif form == "png":
            write.write_png_frames(path, item.video, facts)
        else:
            write.write_npz(path, item.video, fps, facts)
