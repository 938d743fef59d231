"""The one condition of a model, whatever its kind: tokens, and which of them count.

Shapes: B rows, M tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpdm_core.conditioning.labels import NULL, LabelTokens, check_labels, drop_labels, dropped_rows
from hpdm_core.conditioning.text import TextTokens
from hpdm_core.config.schema import ConditionSection
from hpdm_core.data.window import Batch
from hpdm_core.errors import ConfigError
from hpdm_core.rng import BatchStreams

Conditioner = LabelTokens | TextTokens


class Condition(NamedTuple):
    """Condition tokens of B rows. mask: False where a token is padding; None: all count."""

    tokens_BMD: Tensor
    mask_BM: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Condition:
        """The condition of the rows `index`."""
        return Condition(self.tokens_BMD[index], None if self.mask_BM is None else self.mask_BM[index])

    def mean(self) -> Tensor:
        """The mean of the tokens that count, float32 [B, D]."""
        if self.mask_BM is None:
            return self.tokens_BMD.float().mean(dim=1)
        counts_BM1 = self.mask_BM[:, :, None].float()
        return (self.tokens_BMD.float() * counts_BM1).sum(dim=1) / counts_BM1.sum(dim=1)


def build_conditioner(section: ConditionSection, dim: int) -> Conditioner | None:
    """The module that makes condition tokens of width `dim`; None for an unconditional model."""
    if section.kind == "text":
        assert section.text is not None
        return TextTokens(section.text, dim)
    if section.kind == "none":
        return None
    if section.num_classes is None:
        raise ConfigError(
            "model.condition.num_classes is not set",
            hint="train on a labelled store, which fills it in, or set it",
        )
    return LabelTokens(section.num_classes, dim)


def batch_condition(told: Conditioner | None, batch: Batch, drop: float, streams: BatchStreams) -> Condition | None:
    """The condition of a training batch, withheld from a share `drop` of its rows."""
    if told is None:
        return None
    if isinstance(told, LabelTokens):
        return Condition(told(drop_labels(batch.labels, drop, streams)))
    return Condition(*told(batch.captions, batch.text, dropped_rows(drop, streams)))


def wanted_condition(
    told: Conditioner | None, labels: Sequence[int] | None, texts: Sequence[str] | None, rows: int
) -> Condition | None:
    """The condition of `rows` videos to sample; the null one where neither labels nor texts are given."""
    if told is None:
        return None
    if isinstance(told, TextTokens):
        return Condition(*told.rows(texts if texts is not None else [""] * rows))
    wanted = torch.tensor(labels if labels is not None else [NULL] * rows, device=told.table.weight.device)
    return Condition(told(wanted))


def check_wanted(
    told: Conditioner | None, labels: Sequence[int] | None, texts: Sequence[str] | None, rows: int
) -> None:
    """Raise ConfigError for labels or texts that the model cannot follow, or that are not one per row."""
    if texts is not None and not isinstance(told, TextTokens):
        raise ConfigError("this model was not trained on text", hint="leave the prompt out")
    if labels is not None and not isinstance(told, LabelTokens):
        raise ConfigError("this model was trained without classes", hint="leave the class out")
    for values, name in ((labels, "labels"), (texts, "prompts")):
        if values is not None and len(values) != rows:
            raise ConfigError(f"{len(values)} {name} for {rows} seeds: give one per seed")
    if labels is not None and isinstance(told, LabelTokens):
        check_labels(labels, told.num_classes)
