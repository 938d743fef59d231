"""Class labels as one token, with a learned null class for guidance.

Shapes: B batch, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

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
        return self.table(labels_B.where(labels_B >= 0, self.num_classes))[:, None]


def drop_labels(labels_B: Tensor, share: float, streams: BatchStreams) -> Tensor:
    """Replace each row's label by NULL with probability `share`, decided per stream position."""
    dropped = streams.uniform("condition-drop", 1)[:, 0] < share
    return labels_B.where(~dropped.to(labels_B.device), NULL)
