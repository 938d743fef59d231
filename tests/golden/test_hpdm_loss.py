"""Twenty losses of a tiny model on fixed patches: a change in the method's arithmetic shows here first.

After a deliberate change, write them anew and say why in the commit: `python -m tests.golden.test_hpdm_loss`.
"""

import json
from pathlib import Path

import torch

from hpdm_core.rng import BatchStreams
from tests.support.tiny_hpdm import random_batch, tiny_family

STORED = Path(__file__).with_name("hpdm_losses.json")
STEPS, ROWS = 20, 4


def train():
    """(total losses, losses of each level at the last step) of 20 AdamW steps, each on patches of its own."""
    family = tiny_family(lively=False).train()
    optimizer = torch.optim.AdamW(family.parameters(), lr=2e-3, weight_decay=0.01)
    losses, parts = [], {}
    for step in range(STEPS):
        positions = list(range(step * ROWS, (step + 1) * ROWS))
        found = family.losses("denoiser", random_batch(family, positions), BatchStreams(0, positions))
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append(found.total.item())
        parts = {name: part.item() for name, part in found.parts.items()}
    return losses, parts


def test_the_first_twenty_losses_are_the_stored_ones_and_repeat_bit_for_bit():
    losses, parts = train()
    again, _ = train()
    assert losses == again
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(stored["losses"]), atol=1e-4, rtol=1e-4)
    assert set(parts) == set(stored["last_levels"]) == {"level0", "level1", "level2"}
    for name, part in parts.items():
        assert abs(part - stored["last_levels"][name]) < 1e-3


if __name__ == "__main__":
    written, levels = train()
    STORED.write_text(json.dumps({"losses": written, "last_levels": levels}, indent=1) + "\n", encoding="utf-8")
