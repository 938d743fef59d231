"""`hpdm weights`: which weight files metrics need, what a file really is, and conversion to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpdm_cli import console
from hpdm_core.errors import ConfigError

app = typer.Typer(no_args_is_help=True)
File = Annotated[Path, typer.Argument(metavar="FILE", help="A weights file.")]
TorchScript = Annotated[
    bool,
    typer.Option(
        "--torchscript", help="Open a TorchScript archive, which holds a program; only if you trust its source."
    ),
]


@app.callback()
def _weights() -> None:
    """Check and convert the weight files that metrics need. hpdm ships none and downloads none."""


@app.command("list")
def list_command() -> None:
    """Print each weight file: what needs it, where the literature gets it, its licence, and whether it is here."""
    from hpdm_core.metrics.catalogue import CATALOGUE, find_file, weights_folder

    for entry in CATALOGUE:
        found = find_file(entry.name)
        console.print_result(f"{entry.name}: {entry.what}")
        console.print_result(f"  needed for  {entry.needed_for}")
        for source in entry.sources:
            console.print_result(f"  from        {source}")
        console.print_result(f"  licence     {entry.licence}")
        console.print_result(f"  give it by  {entry.option}, or as {weights_folder() / entry.stem}.safetensors")
        console.print_result(f"  here        {found or 'no'}")


@app.command()
def check(file: File, torchscript: TorchScript = False) -> None:
    """Say which network a file is, tensor by tensor against the public checkpoints."""
    from hpdm_core.metrics.identify import identify

    found = identify(file, torchscript=torchscript)
    console.print_result(f"{file}: {found.description}")
    console.print_result(f"naming: {found.naming}")
    console.print_result(f"sha256 of the tensors: {found.sha256}")
    if found.note:
        console.print_result(f"note: {found.note}")
    console.print_result(f"for FVD as the literature reports it: {'yes' if found.literature else 'no'}")


@app.command()
def convert(
    file: File,
    to: Annotated[
        Path | None, typer.Argument(metavar="[OUT.safetensors]", help="Where to; default beside FILE.")
    ] = None,
    mean: Annotated[Path | None, typer.Option("--mean", metavar="FILE", help="C3D's mean volume (mean2.npz).")] = None,
    torchscript: TorchScript = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Turn a foreign .pt, .pth, .npz or TensorFlow data file into safetensors, reading tensors only."""
    from hpdm_core.metrics.identify import convert_weights

    target = to or file.with_name(f"{file.name.partition('.')[0]}.safetensors")
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target} does not end in .safetensors", hint="name the output OUT.safetensors")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists", hint="give another name, or --force to overwrite it")
    found = convert_weights(file, target, torchscript=torchscript, mean=mean)
    console.print_result(f"{target}: {found.description}")
