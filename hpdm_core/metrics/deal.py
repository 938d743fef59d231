"""One evaluation in several processes: whole batches of clips are dealt to the ranks in turn, and gathered in order.

Every batch holds the same clips however many ranks there are, so features, and all that is computed from them,
equal those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Deal:
    """Which clips this rank of `size` takes. `gather` gives every rank the values of all, in order of rank."""

    batch_size: int = 8
    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = _alone

    @property
    def main(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def takes(self, position: int) -> bool:
        """Whether the clip at `position` among all is this rank's."""
        return position // self.batch_size % self.size == self.rank

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items, in order."""
        return [item for position, item in enumerate(items) if self.takes(position)]

    def position(self, own: int) -> int:
        """The place among all clips of this rank's clip number `own`."""
        return self._position(self.rank, own)

    def order(self, counts: Sequence[int]) -> np.ndarray:
        """Where each clip stands in the ranks' items laid one rank after the other; `counts` items a rank."""
        places = [self._position(rank, own) for rank, count in enumerate(counts) for own in range(count)]
        return np.argsort(places)

    def agree(self, flag: bool) -> bool:
        """Whether `flag` holds on every rank; the same answer on all."""
        return all(self.gather(flag))

    def _position(self, rank: int, own: int) -> int:
        turn, row = divmod(own, self.batch_size)
        return (turn * self.size + rank) * self.batch_size + row
