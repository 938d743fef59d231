"""The `hpdm` command line: global options, commands that load on demand, errors to exit codes.

`hpdm --help` reads only the table below. A command's module, and with it torch, is imported when that
command runs or shows its own help.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hpdm_cli import console
from hpdm_cli.stopping import Stopped, raise_on_signals
from hpdm_core.data.disk import FULL
from hpdm_core.errors import EnvironmentProblem, HpdmError, StoppedOnRequest
from hpdm_core.version import __version__

COMMANDS = {
    "prepare-data": ("hpdm_cli.cmd_prepare:prepare_data", "Decode videos once into a store for training."),
    "inspect": (
        "hpdm_cli.cmd_inspect:inspect",
        "Show what a prepared store holds.",
    ),
    "cache-text": ("hpdm_cli.cmd_cache_text:cache_text", "Embed the captions of a store with a CLIP text tower."),
    "train": ("hpdm_cli.cmd_train:train", "Train a preset; the same command again continues."),
    "finetune-hires": (
        "hpdm_cli.cmd_finetune:finetune_hires",
        "Grow a trained model to higher resolution.",
    ),
    "estimate": ("hpdm_cli.cmd_estimate:estimate", "Predict memory, FLOPs and days of a preset."),
    "sample": ("hpdm_cli.cmd_sample:sample", "Generate videos from a trained model."),
    "export": ("hpdm_cli.cmd_export:export", "Write a trained model as one small file."),
    "eval-fvd": ("hpdm_cli.cmd_eval:eval_fvd", "Measure generated videos against real ones."),
    "compare": ("hpdm_cli.cmd_compare:compare", "Put several evaluation results side by side."),
    "report": ("hpdm_cli.cmd_report:report", "Write a self-contained HTML page about a run."),
    "demo": (
        "hpdm_cli.cmd_demo:demo",
        "Try everything on made-up clips, in a few minutes.",
    ),
    "presets": ("hpdm_cli.cmd_presets:app", "List, show and copy the configs that come along."),
    "weights": ("hpdm_cli.cmd_weights:app", "Check and convert the weights that metrics need."),
}
"""Command to (where its function or sub-app is, one line of help), in the order of `hpdm --help`."""

_CONTINUE = {"prepare-data", "train", "finetune-hires", "sample", "demo"}
_CONTINUES = "; the same command again continues"
_AGAIN = ", then run it again"
_ANYWHERE = {"--traceback", "--verbose", "-v"}


class LazyGroup(TyperGroup):
    """A group whose commands are placeholders until one of them is invoked."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command behind the placeholder that `args` name."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name and placeholder else None, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an HpdmError becomes a line on stderr and its exit code."""
        try:
            return super().invoke(ctx)
        except HpdmError as error:
            if ctx.params.get("traceback"):
                console.print_traceback()
            console.print_error(error)
            raise typer.Exit(error.exit_code) from error
        except (KeyboardInterrupt, Stopped) as end:
            again = _CONTINUES if ctx.invoked_subcommand in _CONTINUE else ""
            if isinstance(end, Stopped):
                console.print_note(f"stopped by {end}{again}")
                raise typer.Exit(StoppedOnRequest.exit_code) from end
            console.print_note(f"interrupted{again}")
            raise  # exit code 130, as shells expect
        except OSError as error:
            # A disk that is full or may not be written to is the machine's fault; anything nameless is a bug.
            if ctx.params.get("traceback") or not (error.filename or error.errno in FULL):
                raise
            problem = _disk_problem(error, _CONTINUES if ctx.invoked_subcommand in _CONTINUE else _AGAIN)
            console.print_error(problem)
            raise typer.Exit(problem.exit_code) from error


def _disk_problem(error: OSError, then: str) -> EnvironmentProblem:
    """What a disk did not take, and what to do about it."""
    hint = f"free some space{then}" if error.errno in FULL else ""
    return EnvironmentProblem(f"{error.strerror}: {error.filename or 'while writing'}", hint=hint)


def _load(name: str) -> Any:
    """Import the module of command `name` and build the command."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    target = getattr(import_module(module), attribute)
    parent = typer.Typer(rich_markup_mode=None)
    if isinstance(target, typer.Typer):
        parent.add_typer(target, name=name)
    else:
        parent.command(name)(target)
    return typer.main.get_group(parent).commands[name]


# Plain help texts: they start in half the time, fit narrow terminals, and no [text] is taken for markup.
app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hpdm {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    """Hierarchical patch diffusion models for high-resolution video.

    Exit codes: 0 done, 1 bug, 2 usage or config, 3 data, 4 checkpoint, 5 weights missing,
    6 threshold not met, 75 stopped on request (run the same command again), 130 interrupted.
    """
    console.setup_logging(verbose=verbose)


for _name, (_, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main() -> None:
    """Entry point of the console script. `--traceback` and `--verbose` may stand anywhere."""
    console.make_streams_safe()
    raise_on_signals()
    args = sys.argv[1:]
    end = args.index("--") if "--" in args else len(args)
    flags = [arg for arg in args[:end] if arg in _ANYWHERE]
    rest = [arg for i, arg in enumerate(args) if i >= end or arg not in _ANYWHERE]
    try:
        app([*flags, *rest], prog_name="hpdm")
    except Stopped as end:  # before or after the command itself
        console.print_note(f"stopped by {end}")
        sys.exit(StoppedOnRequest.exit_code)
    except OSError as error:  # before the command itself only help and version are written, to stdout
        if error.errno not in FULL:
            raise
        problem = _disk_problem(error, _AGAIN)
        console.print_error(problem)
        sys.exit(problem.exit_code)
