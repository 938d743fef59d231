"""`hpdm presets`: list, show and copy the configs that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpdm_cli.console import print_result
from hpdm_cli.options import Overrides
from hpdm_cli.results import write_result
from hpdm_core.config.load import dump_config
from hpdm_core.config.presets import list_presets, preset_description, read_preset
from hpdm_core.data.disk import require_writable
from hpdm_core.errors import ConfigError

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A preset, as `hpdm presets list` names it.")]


@app.callback()
def _presets() -> None:
    """List, show and copy the configs that ship with hpdm."""


@app.command("list")
def list_command() -> None:
    """Print each preset and what it is, one per line."""
    names = list_presets()
    width = max(map(len, names), default=0)
    for name in names:
        print_result(f"{name:<{width}}  {preset_description(name)}".rstrip())


@app.command()
def show(
    name: Name,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every key with its value, defaults included.")
    ] = False,
) -> None:
    """Print a preset as it was written, or every key of it."""
    if not (resolved or overrides):
        print_result(read_preset(name).rstrip())
        return
    from hpdm_core.families.registry import load_run_config

    print_result(dump_config(load_run_config(name, overrides or ())).rstrip())


@app.command()
def copy(
    name: Name,
    to: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; the default is NAME.yaml here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a preset to a file of your own, to edit and to train with `--preset FILE`."""
    text = read_preset(name)
    target = to or Path(f"{name}.yaml")
    if target.is_dir():
        target = target / f"{name}.yaml"
    if target.exists() and not force:
        raise ConfigError(f"{target} exists", hint="give another name, or --force to overwrite it")
    require_writable(target, "FILE")
    write_result(target, text)
    print_result(str(target))
