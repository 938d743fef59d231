"""Twenty steps of PVDM in fixed numbers: a change of the method, its losses or its randomness moves them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import tiny_pvdm

from hpdm_core.rng import BatchStreams

ROWS = 4
AUTOENCODER: list[float] = []
GENERATOR: list[float] = []
CRITICS: list[float] = []
DENOISER: list[float] = []


def twenty_losses():
    """Five steps of `ae`, six of `ae_gan` in turns, nine of `ldm`, by plain Adam."""
    family = tiny_pvdm.tiny_family(lively=False)
    found = {"autoencoder": [], "generator": [], "critics": [], "denoiser": []}
    roles = ["autoencoder"] * 5 + ["generator", "critics"] * 3 + ["denoiser"] * 9
    sides = {"autoencoder": family.autoencoder, "generator": family.autoencoder, "critics": family.critics,
             "denoiser": family.denoiser}  # fmt: skip
    optimizers = {role: torch.optim.Adam(side.parameters(), lr=2e-3) for role, side in sides.items()}
    for step, role in enumerate(roles):
        positions = list(range(step * ROWS, (step + 1) * ROWS))
        optimizers[role].zero_grad()
        loss = family.losses(role, tiny_pvdm.random_batch(positions), BatchStreams(0, positions)).total
        loss.backward()
        optimizers[role].step()
        found[role].append(loss.item())
    return found


def test_twenty_steps():
    found = twenty_losses()
    expected = {"autoencoder": AUTOENCODER, "generator": GENERATOR, "critics": CRITICS, "denoiser": DENOISER}
    for role, values in expected.items():
        assert found[role] == pytest.approx(values, rel=2e-4), role


def test_twenty_steps_repeat_exactly():
    assert twenty_losses() == twenty_losses()
