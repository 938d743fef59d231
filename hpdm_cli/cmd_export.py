"""`hpdm export`: a trained model as one small file to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hpdm_cli import console
from hpdm_cli.options import parse_sample_keys
from hpdm_core.errors import ConfigError


def export(
    ckpt: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run directory or weights file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write, ending in .safetensors.")],
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"], typer.Option("--dtype", help="Numbers of the file; bf16 halves it.")
    ] = "bf16",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change how the file samples by default, e.g. steps=[16,8,4]."),
    ] = None,
) -> None:
    """Write a trained model as one file: averaged weights with the config inside, all that sampling needs.

    Sampling computes in fp32 whatever the file holds, unless told otherwise.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} does not end in .safetensors", hint=f"write --out {out.with_suffix('.safetensors')}")
    import torch

    from hpdm_core.families.weights import export_weights

    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    out.parent.mkdir(parents=True, exist_ok=True)
    header = export_weights(ckpt, out, kinds[dtype], parse_sample_keys(overrides or []))
    console.print_result(f"{out}: {out.stat().st_size / 1e6:.1f} MB in {dtype}, {header.videos_seen:,} videos seen")
