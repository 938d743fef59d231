"""Counter-based randomness: a stream is a pure function of (seed, purpose, index).

Nothing in this package touches a global generator. Whoever needs random numbers names what they are
for and which item of the stream they belong to; the same triple gives the same numbers on every
process, batch size and restart. That one rule gives exact resume, batch-size-independent samples and
a data order that does not depend on the number of GPUs.

Shapes: B batch (one stream position per row).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # decoding processes draw NumPy numbers only and should not pay for torch
    import torch
    from torch import Tensor


def derive_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for the stream (seed, purpose, index), uncorrelated with its neighbours."""
    text = f"{int(seed)}/{purpose}/" + "/".join(str(int(i)) for i in index)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator for integers and small draws (data order, offsets, noise levels)."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, *index)))


def torch_stream(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, for tensors of noise.

    CPU and CUDA generators give different numbers for one seed: where results must agree across
    devices (sampling), draw on the CPU and move.
    """
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *index))


@dataclass(frozen=True)
class BatchStreams:
    """The streams of one training batch: row b draws from position `positions[b]` of the data stream.

    Splitting a batch over ranks or micro-batches leaves each row's numbers unchanged.
    """

    seed: int
    positions: Sequence[int]
    device: torch.device | str = "cpu"

    def rows(self, index: Sequence[int]) -> BatchStreams:
        """The streams of the rows `index`, in that order; this very object where that is all of them."""
        if list(index) == list(range(len(self.positions))):
            return self
        return BatchStreams(self.seed, [self.positions[row] for row in index], self.device)

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [B, *shape], float32, drawn on the device."""
        import torch

        noise = torch.empty(len(self.positions), *shape, device=self.device)
        generator = torch.Generator(device=self.device)
        for row, position in zip(noise, self.positions, strict=True):
            row.normal_(generator=generator.manual_seed(derive_seed(self.seed, purpose, position)))
        return noise

    def uniform(self, purpose: str, size: int) -> Tensor:
        """Uniform draws [B, size] in [0, 1), float32; same numbers on every device."""
        import torch

        rows = [numpy_stream(self.seed, purpose, p).random(size) for p in self.positions]
        drawn = torch.from_numpy(np.stack(rows).astype(np.float32))
        # From pinned memory the copy does not wait for the device, which is still busy with the step before.
        pinned = drawn.pin_memory() if torch.device(self.device).type == "cuda" else drawn
        return pinned.to(self.device, non_blocking=True)
