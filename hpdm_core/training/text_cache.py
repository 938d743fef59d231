"""Text embeddings of a whole store, computed once by a frozen CLIP tower: the work of `hpdm cache-text`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from hpdm_core.conditioning.clip import tower_shape
from hpdm_core.conditioning.text import FrozenEncoder
from hpdm_core.config.schema import FrozenText
from hpdm_core.data.embeddings import EncoderIdentity, TextEmbeddings, write_embeddings
from hpdm_core.data.store import VideoStore
from hpdm_core.errors import ConfigError, WeightsMissing
from hpdm_core.nn.devices import pick_device
from hpdm_core.nn.tensor_files import file_sha256

ROWS = 64


def cache_text(
    store_path: str | Path,
    *,
    arch: str,
    path: str | Path,
    quick_gelu: bool,
    sha256: str | None = None,
    device: torch.device | str | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> TextEmbeddings:
    """Embed every caption of the store at `store_path` with the tower of `arch` from the file `path`.

    sha256: what the file's hash must be; None takes it as it is, and records it. on_rows: told how many captions
    were done. Raises DataError for a store without captions, and what `load_tower` raises.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsMissing(f"no weights file at {path}", hint="give the tower's file; nothing is downloaded")
    shape = tower_shape(arch)
    if shape.layers < 2:
        raise ConfigError(f"{arch} has one layer, and so none before the last", hint="take a deeper architecture")
    text = FrozenText(
        mode="frozen",
        arch=arch,
        quick_gelu=quick_gelu,
        path=str(path),
        sha256=sha256 or file_sha256(path),
        width=shape.width,
        pooled_width=shape.pooled_width,
        context_length=shape.context_length,
    )
    identity = EncoderIdentity(**text.model_dump(exclude={"mode"}))
    encoder, where = FrozenEncoder(text), pick_device(device)
    encoder.check()

    def encode(captions: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(captions), ROWS):
            rows = captions[start : start + ROWS]
            states = encoder(rows, where)
            assert states.pooled_BE is not None
            for tokens, mask, pooled in zip(states.tokens_BMW, states.mask_BM, states.pooled_BE, strict=True):
                yield tokens[mask].half().cpu().numpy(), pooled.half().cpu().numpy()
            if on_rows is not None:
                on_rows(len(rows))

    return write_embeddings(VideoStore.open(store_path), identity, encode)
