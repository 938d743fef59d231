"""`hpdm cache-text`: embed the captions of a store once, with a pretrained CLIP text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpdm_cli import console
from hpdm_cli.options import Device


def cache_text(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A store with captions.")],
    arch: Annotated[str, typer.Option("--arch", help="open_clip's name of the architecture, e.g. ViT-L-14.")],
    path: Annotated[Path, typer.Option("--path", metavar="FILE", help="The pretrained weights.")],
    quick_gelu: Annotated[
        bool,
        typer.Option(
            "--quick-gelu/--no-quick-gelu", help="Whether the weights were trained with QuickGELU, as OpenAI's were."
        ),
    ],
    sha256: Annotated[str | None, typer.Option("--sha256", help="What the hash of FILE must be.")] = None,
    device: Device = None,
) -> None:
    """Embed the captions of a store once, with a pretrained CLIP text tower.

    The embeddings lie in STORE/text, named by the tower's hash, and training with `text.mode: frozen` reads
    them. Sampling loads the tower itself, from the same file.
    """
    from hpdm_core.data.embeddings import store_captions
    from hpdm_core.data.store import VideoStore
    from hpdm_core.training.text_cache import cache_text as run

    total = len(store_captions(VideoStore.open(store)))
    with console.progress("cache-text", total, unit="captions") as bar:
        made = run(
            store, arch=arch, path=path, quick_gelu=quick_gelu, sha256=sha256, device=device,
            on_rows=lambda rows: bar.advance(rows),
        )  # fmt: skip
    console.print_result(f"{total:,} captions in {made.folder}")
    console.print_note(f"the tower's sha256: {made.identity.sha256}")
