"""Twenty steps of PVDM in fixed numbers: a change of the method, its losses or its randomness moves them."""

import pytest
import torch

from hpdm_core.rng import BatchStreams
from tests.support import tiny_pvdm

ROWS = 4
AUTOENCODER = [1.732898, 1.762764, 1.768377, 1.580184, 1.497586]
GENERATOR = [5.987246, 5.619208, 5.996653]
CRITICS = [2.009127, 1.953342, 1.926545]
DENOISER = [1.005187, 0.917247, 0.947588, 0.898683, 0.934745, 0.932696, 0.947255, 0.828658, 0.92496]


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
