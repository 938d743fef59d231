"""The first 20 losses of a tiny matryoshka model, as they were when its tests first passed."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_mdm import losses, tiny_family

GOLDEN = {
    "full": (
        0.26818,
        0.34410,
        0.69315,
        0.47047,
        0.08597,
        0.81277,
        0.82085,
        0.36139,
        0.63414,
        1.22092,
        0.94003,
        0.63374,
        0.83176,
        1.35146,
        0.36708,
        1.35267,
        0.36417,
        1.63098,
        1.06337,
        0.90261,
    ),
    "mixed": (
        0.26818,
        0.34410,
        0.69315,
        0.47047,
        0.08597,
        0.85541,
        0.95723,
        0.41368,
        0.74095,
        1.23425,
        0.70691,
        0.76528,
        0.71048,
        1.18752,
        0.44347,
        1.57990,
        0.46192,
        1.43984,
        1.06669,
        0.56377,
    ),
}


def first_losses(steps=20, **changes):
    """Losses of AdamW on batches of 4 from stream position 0 on: low for 5 steps, mid for 5, then full."""
    family = tiny_family(lively=False, **changes).train()
    optimizer = torch.optim.AdamW(family.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    found = []
    for step in range(steps):
        phase = ("low", "mid", "full", "full")[step // 5]
        total = losses(family, range(4 * step, 4 * step + 4), phase=phase).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append(total.item())
    return found


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_first_losses_are_the_golden_ones(name):
    changes = {"row_mix": (1.0, 1.0, 2.0)} if name == "mixed" else {}
    found = first_losses(**changes)
    assert found == pytest.approx(GOLDEN[name], rel=2e-3)
    assert first_losses(**changes) == found  # and again, bit for bit
