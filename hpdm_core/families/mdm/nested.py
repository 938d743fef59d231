"""The nested U-Net: each level's bottleneck is the whole network of the next smaller level (MDM §3.2).

Level 0 is innermost. Two zero-initialised convolutions per level carry features in and out by addition, so
that a network of k levels and the same network wrapped in one more predict the same at first. A level's parameters
have the same names in every nest: the weights of a smaller nest are those of a larger one's inner levels.

Shapes: B batch, R = B * T images, C channels, T H W frames and pixels, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.families.mdm.config import MdmModel
from hpdm_core.families.mdm.unet import LevelUNet


class ConditionInput(nn.Module):
    """Condition tokens as the levels read them: projected for attention, and pooled into the time embedding."""

    def __init__(self, condition_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(condition_dim, condition_dim)
        self.pooled = nn.Linear(condition_dim, embedding_dim, bias=False)

    def forward(self, condition: Condition) -> tuple[Condition, Tensor]:
        """The projected condition and one vector [B, E], of its tokens that count."""
        condition = condition._replace(tokens_BMD=self.tokens(condition.tokens_BMD))
        return condition, self.pooled(condition.mean())


class NestedUNet(nn.Module):
    """Predictions for every level of a nest at once. conditional: whether it reads condition tokens."""

    def __init__(self, config: MdmModel, *, conditional: bool) -> None:
        super().__init__()
        dims = (config.embedding_dim, config.condition_dim if conditional else 0)
        self.condition = ConditionInput(config.condition_dim, config.embedding_dim) if conditional else None
        widths = [None, *(level.channels[0] for level in config.levels)]
        self.levels = nn.ModuleList(
            LevelUNet(level, dims, inner) for level, inner in zip(config.levels, widths, strict=False)
        )

    def forward(
        self,
        z: Sequence[Tensor],
        noise_B: Tensor,
        condition: Condition | None = None,
        counts: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Predictions [B_k, 3, T, H, W] of the levels given in `z`, innermost first; all of them or the inner ones.

        z: network inputs; level k may have only the first B_k rows, and no more than the level inside it: rows
        without an outer level hear nothing from it. counts: how many rows of each level speak to the level
        inside; None: all. noise: the schedule's coordinate of sigma, shared by all levels.
        """
        pooled = None
        if self.condition is not None:
            assert condition is not None
            condition, pooled = self.condition(condition)
        embeddings, waiting, given = [], [], None
        read = [None if condition is None else condition.rows(slice(len(x))) for x in z]
        for k in reversed(range(len(z))):  # inwards, from the outermost level
            level, batch = self._level(k), len(z[k])
            embedding = level.time(noise_B[:batch])
            embeddings.append(embedding if pooled is None else embedding + pooled[:batch])
            x, skips = level.encode(z[k], given, embeddings[-1], read[k])
            waiting.append((x, skips))
            if level.to_inner is not None:
                frames = z[k - 1].shape[2]
                speaking = batch if counts is None else counts[k]
                given = _pad_rows(level.to_inner(x)[: speaking * frames], len(z[k - 1]) * frames)
        outputs: list[Tensor] = []
        inner: Tensor | None = None
        for k in range(len(z)):  # and back
            level, embedding, (x, skips) = self._level(k), embeddings.pop(), waiting.pop()
            if level.from_inner is not None and inner is not None:
                x = x + level.from_inner(inner[: len(x)])
            elif level.middle is not None:
                x = level.middle(x, embedding, read[k])
            inner = level.decode(x, skips, embedding, read[k])
            outputs.append(level.head(inner, len(z[k])))
        return outputs

    def trained_levels(self) -> int:
        """How many levels have been trained at all: heads start at zero. All of them in a new network."""
        if self._level(0).conv_out.weight.is_meta:
            return len(self.levels)
        started = [bool(self._level(k).conv_out.weight.detach().any()) for k in range(len(self.levels))]
        return max((k + 1 for k, yes in enumerate(started) if yes), default=len(started))

    def blocks(self, num_levels: int | None = None) -> Iterator[nn.Module]:
        """The stages of all levels, or of the inner `num_levels`."""
        for k in range(num_levels or len(self.levels)):
            level = self._level(k)
            yield from level.down
            if level.middle is not None:
                yield level.middle
            yield from level.up

    def _level(self, k: int) -> LevelUNet:
        level = self.levels[k]
        assert isinstance(level, LevelUNet)
        return level


def _pad_rows(x_RCHW: Tensor, rows: int) -> Tensor:
    """`x` with rows of zeros after it."""
    missing = rows - len(x_RCHW)
    return x_RCHW if missing == 0 else torch.cat([x_RCHW, x_RCHW.new_zeros(missing, *x_RCHW.shape[1:])])
