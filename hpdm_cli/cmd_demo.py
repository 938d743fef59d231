"""`hpdm demo`: prepare, train and sample on made-up clips, then show it all on one page.

The demo runs the very commands that it prints: each is parsed and executed by this command line.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from hpdm_cli import console
from hpdm_core.errors import ConfigError, StoppedOnRequest
from hpdm_core.families import shipped

PAGE = "index.html"


@dataclass(frozen=True)
class Scale:
    """How big a demo is. box_level: the level at which the sample from the model in the box stops."""

    preset: str
    clips: int
    frames: int
    size: int
    levels: int
    videos: int
    coarse_videos: int
    sample_every_steps: int
    box_level: int


FULL = Scale("demo", clips=400, frames=16, size=64, levels=4, videos=10, coarse_videos=4, sample_every_steps=600,
             box_level=2)  # fmt: skip
QUICK = Scale("hpdm-smoke", clips=20, frames=8, size=32, levels=3, videos=2, coarse_videos=2, sample_every_steps=2,
              box_level=0)  # fmt: skip


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("demo"),
    seconds: Annotated[
        int | None, typer.Option("--seconds", min=1, help="Train at most this long; run again to go on.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps instead of the preset's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that everything works, in seconds.")] = False,
) -> None:
    """Try everything on made-up clips, in a few minutes on two CPU cores, without downloads.

    Makes clips, prepares them, trains a small model, samples from it and writes a page that shows the result and
    the commands that made it. The same command again continues an interrupted demo. Where this version comes with a
    trained model, a sample from that one comes first.
    """
    if out.is_file():
        raise ConfigError(f"{out} is a file", hint="--out names a folder")
    scale = QUICK if quick else FULL
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    done: list[tuple[str, str]] = []
    box = out / "box" if shipped.has_shipped_model() else None
    if box is not None:
        _run(ctx, "first", "Sample a video from the model in the box", box_command(scale, box), done)
    prepare = prepare_command(scale, out)
    _run(ctx, "1/3", "Make clips and prepare them for training", prepare, done)
    with _step_bar():
        _train(ctx, train_command(scale, out, steps, seconds), seconds, done)
    from hpdm_core.families.weights import checkpoint_dirs
    from hpdm_core.report.demo_page import DemoFiles, write_demo_page

    folder = out / "samples" / checkpoint_dirs(out / "run")[-1].name
    coarse = [folder.with_name(f"{folder.name}-level{level}") for level in range(scale.levels - 1)]
    _run(ctx, "3/3", "Sample videos from the trained model", sample_command(out, folder, scale.videos), done)
    for level, place in enumerate(coarse):
        what = f"The same, stopped at level {level}, to see what each level adds"
        words = [*sample_command(out, place, scale.coarse_videos), "--level", str(level)]
        _run(ctx, "3/3", what, words, done)
    page = out / PAGE
    write_demo_page(page, DemoFiles(out / "run", out / "data", folder, coarse, box), done)
    console.print_note(f"done in {time.monotonic() - started:.0f} s; open the page in a browser:")
    console.print_result(str(page.resolve()))


def box_command(scale: Scale, folder: Path) -> list[str]:
    """The words of `hpdm sample …` from the model in the box: one video in seconds."""
    return ["sample", "--prompt", shipped.EXAMPLE_PROMPTS[0], "--level", str(scale.box_level), "--fast",
            "--format", "npz,mp4", "--out", str(folder)]  # fmt: skip


def prepare_command(scale: Scale, out: Path) -> list[str]:
    """The words of `hpdm prepare-data …`: frames at the sizes of the model's levels and no others."""
    shape = f"--num {scale.clips} --frames {scale.frames} --size {scale.size}x{scale.size} --levels {scale.levels}"
    return ["prepare-data", "--source", "synthetic", "--style", "plain", *shape.split(), "--out", str(out / "data")]


def train_command(scale: Scale, out: Path, steps: int | None, seconds: int | None) -> list[str]:
    """The words of `hpdm train …`."""
    words = ["train", "--preset", scale.preset, "--data", str(out / "data"), "--out", str(out / "run"),
             "--set", f"train.sample_every_steps={scale.sample_every_steps}"]  # fmt: skip
    words += ["--set", f"train.max_steps={steps}"] if steps else []
    return words + (["--time-limit", f"{seconds}s"] if seconds else [])


def sample_command(out: Path, folder: Path, videos: int) -> list[str]:
    """The words of `hpdm sample …`: one video of each class, as lossless arrays and as previews."""
    return ["sample", "--ckpt", str(out / "run"), "--class", "all", "--seeds", f"0-{videos - 1}",
            "--fps", "12", "--format", "npz,mp4", "--out", str(folder)]  # fmt: skip


def _train(ctx: typer.Context, words: list[str], seconds: int | None, done: list[tuple[str, str]]) -> None:
    """Train; with `--seconds`, being stopped by the clock is success."""
    started = time.monotonic()
    try:
        _run(ctx, "2/3", "Train a model on them", words, done)
    except StoppedOnRequest:
        if seconds is None or time.monotonic() - started < seconds:
            raise
        console.print_note(f"stopped after {seconds} s as asked; the same command again trains on")


def _run(ctx: typer.Context, number: str, what: str, words: Sequence[str], done: list[tuple[str, str]]) -> None:
    """Run one command of this program as if it had been typed, and remember it."""
    line = shlex.join(["hpdm", *words])
    console.print_note(f"\n[{number}] {what}\n$ {line}")
    done.append((what, line))
    parent = ctx.parent
    assert parent is not None
    assert isinstance(parent.command, TyperGroup)
    name, command, rest = parent.command.resolve_command(parent, list(words))
    assert command is not None
    # Not `command.main`, which would turn Ctrl-C and exit codes into return values: they end the demo, too.
    try:
        with command.make_context(f"hpdm {name}", rest) as context:
            command.invoke(context)
    except typer.Exit as end:
        if end.exit_code:
            raise


@contextmanager
def _step_bar() -> Iterator[None]:
    """Show training as a bar: its step lines move the bar instead of being printed."""
    lines = logging.getLogger("hpdm_core.training.hooks")
    with console.progress("train", unit="steps") as bar:

        def move(record: logging.LogRecord) -> bool:
            if not isinstance(record.args, tuple) or len(record.args) < 4:
                return True
            _, step, total, loss = record.args[:4]
            bar.update(float(str(step)), total=float(str(total)), loss=loss)
            return False

        lines.addFilter(move)
        try:
            yield
        finally:
            lines.removeFilter(move)
