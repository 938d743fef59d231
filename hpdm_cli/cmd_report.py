"""`hpdm report`: write a self-contained HTML page about runs and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpdm_cli import console
from hpdm_cli.options import Device
from hpdm_core.data.disk import require_writable
from hpdm_core.errors import ConfigError


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN|DIR...", help="Runs, or folders of samples.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page to write.")] = Path("report.html"),
    store: Annotated[
        Path | None, typer.Option("--store", metavar="STORE", help="Real clips to show and to search.")
    ] = None,
    nearest: Annotated[
        int, typer.Option("--nearest", min=0, help="With --store: real clips to search for the nearest; 0 is none.")
    ] = 64,
    device: Device = None,
) -> None:
    """Write a self-contained HTML page about runs and samples.

    Config, curves, samples across checkpoints beside real clips, metrics with protocol and interval, seams. With
    --store also the nearest real clip of each sample. The page opens from disk, without network or scripts.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder", hint=f"name a file, for example --out {out / 'report.html'}")
    require_writable(out, "--out")
    from hpdm_core.nn.devices import pick_device
    from hpdm_core.report.build import clips_to_embed, write_report

    total = clips_to_embed(paths, store, nearest)
    where = str(pick_device(device))
    if total:
        with console.progress("nearest", total, unit="clips") as bar:
            write_report(paths, out, store=store, nearest=nearest, device=where, advance=bar.advance)
    else:
        write_report(paths, out, store=store, nearest=0, device=where)
    console.print_result(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
