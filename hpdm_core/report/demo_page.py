"""The page that `hpdm demo` leaves behind: what was made, how it was learned, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpdm_core.data.shard import write_text
from hpdm_core.data.store import VideoStore
from hpdm_core.report import sections
from hpdm_core.report.chart import number
from hpdm_core.report.curves import curve_figures
from hpdm_core.report.markup import Section, command, figure, folded, grid, page, paragraph
from hpdm_core.report.media import clip_picture
from hpdm_core.report.reading import ShownClip, Subject, read_subject, real_like
from hpdm_core.training.source import weightless_family

NEXT = (
    ("Look closer at this run, with the nearest real clip of each sample", "hpdm report {run} --store {store}"),
    ("Prepare clips of your own", "hpdm prepare-data path/to/videos --size 128x128 --out data/mine"),
    ("See what else can be trained", "hpdm presets list"),
)


BOX_SIDE = 384
"""The longer side of the clip that comes first."""


@dataclass(frozen=True)
class DemoFiles:
    """What a demo has made. `coarse` are the folders of samples that stopped at a coarse level, coarsest first.

    box: the folder of samples from the model in the box, where there is one.
    """

    run: Path
    store: Path
    samples: Path
    coarse: Sequence[Path] = ()
    box: Path | None = None


def write_demo_page(out: Path, files: DemoFiles, commands: Sequence[tuple[str, str]]) -> None:
    """Write the page to `out`. `commands` are (what it does, the command line) in the order they ran."""
    run, made = read_subject(files.run), read_subject(files.samples)
    store = VideoStore.open(files.store)
    title = "Your first videos from hierarchical patch diffusion"
    lead = (
        f"A model of {number(_parameters(run))} parameters looked at {len(store)} made-up clips for "
        f"{sections.clock(_seconds(run))} and then made the videos below from noise. Nothing was downloaded."
    )
    found = [
        *_box(files.box),
        _made(made, store),
        *_levels(made, files.coarse),
        _growth(run, store),
        Section("loss", "Loss, level by level", curve_figures(run.log, ("loss", "loss_levels")),
                "Level 0 is the whole clip, small; each further level has twice the frames, height and width."),
        _again(commands, {"run": str(files.run), "store": str(files.store)}),
        Section("config", "Config", folded("The whole config of the run", run.config_text)),
    ]  # fmt: skip
    write_text(out, page(title, lead, found, kicker="hpdm demo"))


def _box(folder: Path | None) -> list[Section]:
    """What the model in the box made, before anything was trained."""
    if folder is None:
        return []
    clips = read_subject(folder).clips
    figures = [figure(clip_picture(c.video, c.fps, c.caption, max_side=BOX_SIDE), c.caption) for c in clips]
    note = "Made before anything was trained, by a small model that comes with hpdm and was told this sentence."
    return [Section("box", "From the model in the box", grid(figures, "rows"), note)]


def _made(made: Subject, store: VideoStore) -> Section:
    real = real_like(store, made.clips)
    pairs = [
        sections.pair(clip, like, clip.caption, ("made", "real"))
        for clip, like in zip(made.clips, real, strict=True)
    ]  # fmt: skip
    note = "Left: made by the model, which was told the class. Right: a clip of that class that it was trained on."
    return Section("made", "Made beside real", grid(pairs, "pairs"), note)


def _levels(made: Subject, coarse: Sequence[Path]) -> list[Section]:
    """The same seeds stopped early: what each level adds."""
    if not coarse:
        return []
    columns = [read_subject(folder).clips for folder in coarse]
    figures = []
    for row in zip(*columns, made.clips, strict=False):
        cells = "".join(f"<div><p>{_shape(c)}</p>{clip_picture(c.video, c.fps, _shape(c))}</div>" for c in row)
        figures.append(figure(f'<div class="row">{cells}</div>', row[-1].caption))
    note = "The same seeds, stopped at each level. A level sees everything coarser and adds detail, tile by tile."
    return [Section("levels", "From coarse to fine", grid(figures, "rows"), note)]


def _shape(clip: ShownClip) -> str:
    frames, height, width = clip.video.shape[:3]
    return f"{frames} frames, {height}×{width}"


def _growth(run: Subject, store: VideoStore) -> Section:
    section = sections.samples(run, store)
    return Section("growth", "While it learned", section.html, section.note)


def _again(commands: Sequence[tuple[str, str]], names: Mapping[str, str]) -> Section:
    steps = "".join(f"<li>{paragraph(what)}{command(line)}</li>" for what, line in commands)
    after = "".join(f"<li>{paragraph(what)}{command(line.format(**names))}</li>" for what, line in NEXT)
    html = f'<ol class="steps">{steps}</ol><h3>What next</h3><ul class="steps">{after}</ul>'
    note = "These are the commands that hpdm demo ran, word for word. Each continues where it was interrupted."
    return Section("again", "Do it again", html, note)


def _parameters(run: Subject) -> int:
    return 0 if run.config is None else sum(p.numel() for p in weightless_family(run.config).parameters())


def _seconds(run: Subject) -> float:
    return max((float(entry.get("seconds", 0.0)) for entry in run.log), default=0.0)
