"""Text embeddings beside a store: computed once by a frozen encoder, read by every training run.

STORE/text/<key>/about.json    which encoder (its weights' hash is part of the key), which store, how much
STORE/text/<key>/tokens.f16    states of all tokens, caption after caption, [total, W]
STORE/text/<key>/starts.npy    first token of each caption, and the total, int64 [N + 1]
STORE/text/<key>/pooled.npy    one vector per caption, fp16 [N, E]

Captions are the store's distinct ones in the order of its clips; their number is their row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.data.disk import appearing_folder, naming
from hpdm_core.data.store import VideoStore
from hpdm_core.errors import DataError, StoreMismatch

FOLDER = "text"
FORMAT = 1
ABOUT = "about.json"


@dataclass(frozen=True)
class EncoderIdentity:
    """What decides an embedding: the architecture, its weights, its activation. Other fields follow from these."""

    arch: str
    sha256: str
    quick_gelu: bool
    path: str
    width: int
    pooled_width: int
    context_length: int

    @property
    def key(self) -> str:
        """A short name for this encoder."""
        text = f"{FORMAT}/{self.arch}/{self.sha256}/{self.quick_gelu}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def store_captions(store: VideoStore) -> list[str]:
    """The distinct captions of a store, in the order of its clips."""
    return list(dict.fromkeys(caption for clip in store.clips for caption in clip.captions))


class TextEmbeddings:
    """The stored embeddings of one encoder, opened for reading; pickles as its path."""

    def __init__(self, folder: Path, identity: EncoderIdentity, captions: list[str]) -> None:
        self.folder, self.identity, self._captions = folder, identity, captions

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {caption: row for row, caption in enumerate(self._captions)}

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        starts = np.load(self.folder / "starts.npy", mmap_mode="r")
        pooled = np.load(self.folder / "pooled.npy", mmap_mode="r")
        tokens = np.memmap(self.folder / "tokens.f16", np.float16, "r", shape=(int(starts[-1]), self.identity.width))
        return tokens, starts, pooled

    def __reduce__(self) -> tuple[Any, ...]:
        return TextEmbeddings, (self.folder, self.identity, self._captions)

    def read(self, caption: str) -> dict[str, np.ndarray]:
        """tokens fp16 [M, W] padded with zeros, mask bool [M], pooled fp16 [E]; all zero for an empty caption."""
        who = self.identity
        tokens, mask = np.zeros((who.context_length, who.width), np.float16), np.zeros(who.context_length, bool)
        if not caption:
            return {"tokens": tokens, "mask": mask, "pooled": np.zeros(who.pooled_width, np.float16)}
        states, starts, pooled = self._arrays
        row = self._rows[caption]
        first, last = int(starts[row]), int(starts[row + 1])
        tokens[: last - first], mask[: last - first] = states[first:last], True
        return {"tokens": tokens, "mask": mask, "pooled": np.array(pooled[row])}


def find_embeddings(store: VideoStore, wanted: Mapping[str, Any]) -> TextEmbeddings:
    """The embeddings of `store` by the encoder that has the `wanted` values of `EncoderIdentity`.

    Raises StoreMismatch, with the command that computes them, if there are none, several or those of another store.
    """
    command = f"hpdm cache-text {store.path} --arch {wanted.get('arch', 'ARCH')} --path FILE"
    command += " --quick-gelu" if wanted.get("quick_gelu") else ""
    found = [(folder, about) for folder, about in _abouts(store) if _matches(about["encoder"], wanted)]
    if not found:
        others = ", ".join(sorted({about["encoder"]["arch"] for _, about in _abouts(store)})) or "none at all"
        raise StoreMismatch(
            f"{store.path} holds no text embeddings of this encoder (of {others})",
            hint=f"compute them once: {command}",
        )
    if len(found) > 1:
        hashes = ", ".join(about["encoder"]["sha256"][:12] for _, about in found)
        raise StoreMismatch(
            f"{store.path} holds embeddings of {len(found)} such encoders: {hashes}",
            hint="set model.condition.text.sha256 to the one that is meant",
        )
    ((folder, about),) = found
    if about["fingerprint"] != store.fingerprint:
        raise StoreMismatch(f"{folder} was made for other clips than the store holds now", hint=f"again: {command}")
    return TextEmbeddings(folder, EncoderIdentity(**about["encoder"]), store_captions(store))


def write_embeddings(
    store: VideoStore,
    identity: EncoderIdentity,
    encode: Callable[[list[str]], Iterator[tuple[np.ndarray, np.ndarray]]],
) -> TextEmbeddings:
    """Compute and store the embeddings of every caption; those that exist for these clips are kept.

    encode: captions to (states fp16 [M, W] without padding, pooled fp16 [E]) of each. Raises DataError for a store
    without captions.
    """
    captions = store_captions(store)
    if not captions:
        raise DataError(f"no clip of {store.path} has a caption", hint="prepare it from a csv or jsonl table")
    folder = store.path / FOLDER / identity.key
    old = dict(_abouts(store)).get(folder)
    if old is None or old["fingerprint"] != store.fingerprint:
        about = {"format": FORMAT, "fingerprint": store.fingerprint, "captions": len(captions)}
        text = json.dumps({**about, "encoder": asdict(identity)}, indent=1, sort_keys=True)
        with appearing_folder(folder) as partial:
            _write_arrays(partial, encode(captions))
            with naming(partial / ABOUT):
                (partial / ABOUT).write_text(text + "\n", encoding="utf-8")
    return TextEmbeddings(folder, identity, captions)


def _write_arrays(folder: Path, rows: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    starts, pooled, tokens = [0], [], folder / "tokens.f16"
    with naming(tokens), tokens.open("wb") as file:
        for states, vector in rows:
            file.write(np.ascontiguousarray(states, dtype=np.float16).tobytes())
            starts.append(starts[-1] + len(states))
            pooled.append(vector.astype(np.float16))
    for name, array in (("starts.npy", np.array(starts, dtype=np.int64)), ("pooled.npy", np.stack(pooled))):
        with naming(folder / name):
            np.save(folder / name, array)


def _abouts(store: VideoStore) -> list[tuple[Path, dict[str, Any]]]:
    files = sorted((store.path / FOLDER).glob(f"*/{ABOUT}"))
    return [
        (f.parent, json.loads(f.read_text(encoding="utf-8"))) for f in files if f.parent.suffix not in (".tmp", ".old")
    ]


def _matches(encoder: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(encoder[name] == value for name, value in wanted.items() if value is not None)
