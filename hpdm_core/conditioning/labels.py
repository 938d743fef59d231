"""Class labels as one token, with a learned null class for guidance.

Shapes: B batch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hpdm_core.errors import ConfigError
from hpdm_core.rng import BatchStreams

NULL = -1
"""The label that means "no condition"."""


class LabelTokens(nn.Module):
    """One token per row from a table of classes; NULL reads the learned null row."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.table.weight, std=1.0)

    def forward(self, labels_B: Tensor) -> Tensor:
        """int64 [B] in NULL..num_classes - 1 to [B, 1, D]."""
        return self.table(labels_B.masked_fill(labels_B < 0, self.num_classes))[:, None]


def check_labels(labels: Sequence[int], num_classes: int) -> None:
    """Raise ConfigError unless every label is NULL or a class of the model."""
    strange = sorted({int(label) for label in labels if not NULL <= label < num_classes})
    if strange:
        raise ConfigError(
            f"label {strange[0]} is not a class of this model",
            hint=f"its classes are 0 to {num_classes - 1}; {NULL} means no class",
        )


def drop_labels(labels_B: Tensor, share: float, streams: BatchStreams) -> Tensor:
    """Replace each row's label by NULL with probability `share`, decided per stream position."""
    return labels_B.masked_fill(dropped_rows(share, streams).to(labels_B.device), NULL)


def dropped_rows(share: float, streams: BatchStreams) -> Tensor:
    """bool [B]: the rows whose condition is withheld, each with probability `share`."""
    return streams.uniform("condition-drop", 1)[:, 0] < share
