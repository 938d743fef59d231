"""Where training items come from: finding the store, checking it against the config, endless batches."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from hpdm_core.conditioning.tokenizer import CaptionNumbers, words_of
from hpdm_core.config.schema import FrozenText, JointText, RunConfig
from hpdm_core.data.dataset import CaptionReader, make_loader, to_device
from hpdm_core.data.embeddings import TextEmbeddings, find_embeddings
from hpdm_core.data.shard import write_text
from hpdm_core.data.store import STORE_FILE, VideoStore, is_taken, no_store
from hpdm_core.data.window import Batch, ClipView
from hpdm_core.errors import DataError, StoreMismatch
from hpdm_core.families.base import Family
from hpdm_core.families.registry import build_family
from hpdm_core.training.conditions import (
    class_condition,
    encoder_wanted,
    text_condition,
    with_classes,
    with_encoder,
    with_placeholders,
    with_vocabulary,
)
from hpdm_core.training.distributed import World

logger = logging.getLogger(__name__)

DATA_FILE = "data.json"
PROCEDURAL = ("demo", "smoke")
"""Datasets of the presets that train on made-up clips."""


class Source(Protocol):
    """What the loop needs of a dataset. Item `position` of its stream never depends on ranks or batch sizes."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names by label."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the dataset."""
        ...

    @property
    def fps(self) -> float | None:
        """Frames per second of the clips as training reads them, None where that is not known."""
        ...

    def captions(self) -> Iterable[str]:
        """All captions, for models that read them."""
        ...

    def embeddings(self, text: FrozenText) -> TextEmbeddings:
        """The captions' embeddings by the frozen encoder `text`; StoreMismatch if there are none."""
        ...

    def batches(
        self, view: ClipView, *, start: int, batch_size: int, micro_batch: int, world: World
    ) -> Iterator[Batch]:
        """This rank's micro-batches on its device, without end, from position `start` on.

        A global batch is `batch_size` consecutive positions, shared by the ranks.
        """
        ...


class StoreSource:
    """A prepared store as a source."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.store = VideoStore.open(path)
        self._config = config

    @property
    def classes(self) -> Sequence[str]:
        """Class names by label."""
        return self.store.classes

    @property
    def fingerprint(self) -> str:
        """The store's own fingerprint."""
        return self.store.fingerprint

    @property
    def fps(self) -> float | None:
        """The store's rate over the config's frame stride."""
        known = self.store.fps
        return known / self._config.data.frame_stride if known else None

    def captions(self) -> Iterable[str]:
        """The captions of all clips, repeated ones too."""
        return (caption for clip in self.store.clips for caption in clip.captions)

    def embeddings(self, text: FrozenText) -> TextEmbeddings:
        """Those that `hpdm cache-text` wrote beside the store."""
        return find_embeddings(self.store, encoder_wanted(text))

    def _reader(self) -> CaptionReader | None:
        """What the model is given of a caption; None if it reads none."""
        text = text_condition(with_vocabulary(self._config, self.captions()))
        if isinstance(text, JointText):
            return CaptionNumbers(text.words, text.context_length)
        return self.embeddings(text) if text is not None else None

    def batches(
        self, view: ClipView, *, start: int, batch_size: int, micro_batch: int, world: World
    ) -> Iterator[Batch]:
        """See `Source.batches`. Raises StoreMismatch or DataError if the store cannot serve `view`."""
        loader = make_loader(
            self.store,
            view,
            self._config.data,
            seed=self._config.train.seed,
            start_position=start,
            batch_size=batch_size,
            micro_batch=micro_batch,
            rank=world.rank,
            world_size=world.size,
            pin_memory=world.device.type == "cuda",
            need_labels=class_condition(self._config) is not None,
            captions=self._reader(),
        )
        return (to_device(batch, world.device) for batch in loader)


def fitted(config: RunConfig, source: Source) -> RunConfig:
    """`config` with what only the data knows: the classes, the words, the encoder of the embeddings.

    Raises StoreMismatch where the data cannot serve the model's condition.
    """
    text = text_condition(config)
    if text is not None and not any(True for _ in source.captions()):
        raise StoreMismatch(
            "the model reads captions, and the store has none",
            hint="prepare it from a csv or jsonl table with captions, or choose another model.condition.kind",
        )
    if isinstance(text, FrozenText):
        return with_encoder(config, source.embeddings(text).identity)
    if text is not None and text.words is not None:
        _tell_of_unknown_words(text.words, source.captions())
    return with_classes(config, source.classes) if text is None else with_vocabulary(config, source.captions())


def _tell_of_unknown_words(words: Sequence[str], captions: Iterable[str]) -> None:
    """Warn of words that a given vocabulary, such as that of a fine-tuned model's base, lacks."""
    strange = sorted(w for w in set(words_of(captions)).difference(words) if any(map(str.isalnum, w)))
    if strange:
        some = ", ".join(strange[:8]) + (", …" if len(strange) > 8 else "")
        logger.warning("left out of the captions: %d words that the model was never told: %s", len(strange), some)


def find_store(config: RunConfig, given: Path | None) -> Path:
    """The store to train on: `given`, the config's, $HPDM_DATA/<dataset> or data/<dataset>.

    Raises DataError with what to run if none of them exists, or what stands there is no finished store.
    """
    explicit = given or (Path(config.data.store) if config.data.store else None)
    dataset = config.data.dataset
    candidates = [explicit] if explicit else []
    if not explicit:
        root = os.environ.get("HPDM_DATA")
        candidates = [Path(root) / dataset] if root else []
        candidates.append(Path("data") / dataset)
    for path in candidates:
        if (path / STORE_FILE).is_file():
            return path
    if taken := [path for path in candidates if is_taken(path)]:
        raise no_store(taken[0], partial(prepare_line, config))
    places = " or ".join(str(path) for path in candidates)
    raise DataError(
        f"no prepared store for dataset {dataset!r}: there is none at {places}",
        hint=f"prepare one: {prepare_line(config, None, candidates[-1])}",
    )


def note_store(run: Path, store: VideoStore) -> None:
    """Write down which store `run` trains on, relative to the run, so that both can be moved together."""
    place = os.path.relpath(store.path.resolve(), run.resolve())
    write_text(run / DATA_FILE, json.dumps({"store": place, "fingerprint": store.fingerprint}, indent=1) + "\n")


def noted_store(run: Path) -> VideoStore | None:
    """The store that `run` was last trained on, if it is still there and the same."""
    try:
        about = json.loads((run / DATA_FILE).read_text(encoding="utf-8"))
        store = VideoStore.open(run.resolve() / about["store"])
    except (OSError, ValueError, KeyError, DataError) as error:
        logger.debug("%s: %s", run / DATA_FILE, error)
        return None
    if store.fingerprint != about.get("fingerprint"):
        logger.warning("%s is no longer the store that %s was trained on", store.path, run)
        return None
    return store


def prepare_line(config: RunConfig, source: Path | None, out: Path) -> str:
    """The command that prepares what `config` trains on: from `source`, or from where such clips usually come."""
    family = weightless_family(config)
    view = family.view(family.phases()[-1].name)
    height, width = view.sizes[0]
    dataset = config.data.dataset
    if source is not None:
        words = [str(source)]
    elif dataset.startswith("ucf101"):
        words = ["path/to/UCF-101", "--source", "ucf101"]
    elif dataset in PROCEDURAL:
        words = ["--source", "synthetic", "--frames", str(view.frames)]
    else:
        words = ["path/to/videos", "--source", "auto"]
    return shlex.join(["hpdm", "prepare-data", *words, "--size", f"{height}x{width}", "--out", str(out)])


def weightless_family(config: RunConfig) -> Family:
    """The family of `config` without memory for its weights; an unknown number of classes or words counts as one."""
    with torch.device("meta"):
        return build_family(with_placeholders(config))
