"""The matryoshka loss and process against closed forms, and mixed-resolution batches against full ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hpdm_core.conditioning.labels import NULL
from hpdm_core.diffusion.process import corrupt
from hpdm_core.families.mdm.view import NestView, depth_order
from hpdm_core.rng import BatchStreams, numpy_stream
from tests.support.tiny_mdm import EXTENTS, losses, random_batch, resolutions, tiny_family

POSITIONS = list(range(40, 48))
MIX = {"row_mix": (1.0, 1.0, 2.0)}


def drawn(family, positions, seed=0):
    """Noise levels and noises of a full batch, as the loss draws them."""
    streams = BatchStreams(seed, positions)
    sigma = family.schedule.draw(streams.uniform("sigma", 1)[:, 0])
    return sigma, [streams.normal(f"noise/level{k}", (3, *extent)) for k, extent in enumerate(EXTENTS)]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_signal_to_noise_ratio_is_shifted_by_minus_p_log_s(power):
    family = tiny_family(shift_power=power)
    sigma = torch.tensor([0.05, 1.0, 30.0], dtype=torch.float64)
    for form, side in zip(family.levels, family.config.scales, strict=True):
        x, eps = torch.ones(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
        signal = form.network_input(corrupt(x, 0 * eps, sigma, form.scale), sigma)
        noise = form.network_input(corrupt(0 * x, eps, sigma, form.scale), sigma)
        assert torch.allclose(signal**2 + noise**2, torch.ones_like(signal))
        measured = (signal**2 / noise**2).log()[:, 0]
        assert torch.allclose(measured, -2 * sigma.log() - power * math.log(side))


def test_with_p_2_pooling_the_outer_state_gives_the_ratio_of_the_inner_one():
    family = tiny_family(shift_power=2.0)
    middle, outer = family.levels[1:]
    sigma, generator = torch.tensor([0.7]), torch.Generator().manual_seed(0)
    eps = torch.randn(1, 3, 4, 256, 256, generator=generator)
    noise = corrupt(0 * eps, eps, sigma, outer.scale)
    pooled = F.avg_pool3d(noise, (1, 2, 2)).std() / noise.std()
    ratio = (middle.scale / outer.scale) ** 2
    # Pooling keeps the signal and divides the noise's power; so does going from the outer schedule to the inner.
    assert (pooled**2).item() == pytest.approx(ratio, rel=0.02)


def test_the_noise_loss_is_gamma_times_the_v_loss():
    family = tiny_family()
    sigma, noises = drawn(family, POSITIONS)
    for k, form in enumerate(family.levels):
        x = random_batch(POSITIONS).videos[f"level{k}"]
        guess = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        noisy = corrupt(x, noises[k], sigma, form.scale)
        clean = form.denoised(noisy, guess, sigma)
        implied = (noisy - clean / form.scale) / sigma.view(-1, 1, 1, 1, 1)
        gamma = 1 / (1 + (form.scale * sigma) ** 2)
        v_error = (guess - form.target(x, noises[k], sigma)).square().mean((1, 2, 3, 4))
        eps_error = (implied - noises[k]).square().mean((1, 2, 3, 4))
        assert torch.allclose(form.weight(sigma), gamma, rtol=1e-4, atol=1e-12)
        assert torch.allclose(eps_error, gamma * v_error, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("space", ["eps", "v"])
def test_the_loss_of_a_new_network_is_the_power_of_its_target(space):
    family = tiny_family(lively=False, loss_space=space)
    sigma, noises = drawn(family, POSITIONS)
    found = losses(family, POSITIONS)
    total = 0.0
    for k, form in enumerate(family.levels):
        x = random_batch(POSITIONS).videos[f"level{k}"]
        ratio = (form.scale * sigma).view(-1, 1, 1, 1, 1)
        alpha, beta = (1 + ratio**2).rsqrt(), ratio * (1 + ratio**2).rsqrt()
        power = (alpha * noises[k] - beta * x).square()
        expected = (power * alpha**2 if space == "eps" else power).mean()
        assert found.parts[f"level{k}"].item() == pytest.approx(expected.item(), rel=1e-5)
        total += expected.item()
    assert found.total.item() == pytest.approx(total, rel=1e-5)


def test_noise_levels_are_shared_by_resolutions_and_their_noises_are_independent():
    family = tiny_family()
    seen = {}

    def spy(z, noise, condition, counts):
        seen["noise"] = noise
        return [torch.zeros_like(x) for x in z]

    family.denoiser.forward = spy
    losses(family, POSITIONS)
    assert seen["noise"].shape == (len(POSITIONS),)
    assert seen["noise"].unique().numel() == len(POSITIONS)
    _, (image, middle, outer) = drawn(family, list(range(2000)))
    pooled = resolutions(outer)[1]
    for a, b in ((pooled, middle), (middle[:, :, :1], image)):
        correlation = (a * b).mean() / (a.std() * b.std())
        assert abs(correlation.item()) < 4 / math.sqrt(a.numel())


def test_a_phase_of_fewer_levels_has_the_losses_of_the_inner_levels():
    family = tiny_family(lively=False)
    full = losses(family, POSITIONS).parts
    for phase, names in (("low", ["level0"]), ("mid", ["level0", "level1"])):
        parts = losses(family, POSITIONS, phase=phase).parts
        assert list(parts) == names
        assert all(torch.equal(parts[name], full[name]) for name in names)


def test_level_weights_scale_the_terms_and_leave_the_log_alone():
    plain, weighted = (losses(tiny_family(level_weights=w), POSITIONS) for w in (None, (0.0, 2.0, 1.0)))
    assert {k: v.item() for k, v in plain.parts.items()} == {k: v.item() for k, v in weighted.parts.items()}
    expected = 2 * plain.parts["level1"] + plain.parts["level2"]
    assert weighted.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert sum(t.item() for t in weighted.terms.values()) == pytest.approx(weighted.total.item(), rel=1e-6)


def test_splitting_a_batch_leaves_its_loss_unchanged():
    for change in ({}, MIX):
        family = tiny_family(**change)
        whole = losses(family, POSITIONS).total
        halves = [losses(family, part).total for part in (POSITIONS[:3], POSITIONS[3:])]
        mean = (3 * halves[0] + 5 * halves[1]) / 8
        assert mean.item() == pytest.approx(whole.item(), rel=1e-4)


def test_depths_follow_from_positions_and_hold_their_shares_in_every_batch():
    shares = (1.0, 0.75, 0.5)
    for start in (0, 1, 17, 10**7):
        positions = list(range(start, start + 32))
        order, counts = depth_order(positions, shares)
        assert sorted(order) == list(range(32))
        assert counts[0] == 32
        assert abs(counts[1] - 24) <= 2
        assert abs(counts[2] - 16) <= 2
        deepest = {positions[row] for row in order[: counts[2]]}
        alone = {p for p in positions if depth_order([p], shares)[1][2] == 1}
        assert deepest == alone
    assert depth_order(list(range(5)), (1.0, 1.0)) == ([0, 1, 2, 3, 4], [5, 5])


def test_mixed_batches_have_the_loss_of_full_ones_in_expectation():
    """With closed adapters a row's loss at a level does not depend on which of its levels are there."""
    mixed, full = tiny_family(lively=False, **MIX), tiny_family(lively=False)
    positions = list(range(1200))
    found, expected = losses(mixed, positions).parts, losses(full, positions).parts
    assert found["level0"].item() == pytest.approx(expected["level0"].item(), rel=1e-5)
    # A row's loss varies by about 1.2 times its mean: three standard errors for the rows that are left out.
    for k, share in ((1, 0.75), (2, 0.5)):
        spread = 3 * 1.2 * ((1 - share) / (share * len(positions))) ** 0.5
        assert found[f"level{k}"].item() == pytest.approx(expected[f"level{k}"].item(), rel=spread)


def test_mixed_batches_train_each_level_on_exactly_the_rows_that_reach_it():
    mixed, full = tiny_family(**MIX), tiny_family()
    reaching = [p for p in POSITIONS if depth_order([p], (1.0, 0.75, 0.5))[1][2]]
    assert 0 < len(reaching) < len(POSITIONS)
    rows = torch.stack([losses(full, [p]).parts["level2"] for p in reaching])
    expected = rows.sum() / (0.5 * len(POSITIONS))
    assert losses(mixed, POSITIONS).parts["level2"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_batch_that_never_reaches_a_level_still_gives_it_a_gradient_of_zero():
    family = tiny_family(**MIX)
    shallow = next(p for p in range(100) if depth_order([p], (1.0, 0.75, 0.5))[1] == [1, 0, 0])
    found = losses(family, [shallow])
    assert found.parts["level1"].item() == found.parts["level2"].item() == 0.0
    found.total.backward()
    outer = [p.grad for p in family.denoiser.levels[2].parameters()]
    assert all(g is not None and torch.isfinite(g).all() and not g.any() for g in outer)
    assert any(p.grad.any() for p in family.denoiser.levels[0].parameters())


def test_losses_are_a_function_of_seed_and_positions():
    family = tiny_family(**MIX)
    first, again = losses(family, POSITIONS).total, losses(family, POSITIONS).total
    assert torch.equal(first, again)
    assert not torch.equal(first, losses(family, POSITIONS, seed=1).total)


def test_the_condition_is_dropped_at_its_rate():
    family = tiny_family()
    positions = list(range(10_000))
    batch = replace(random_batch(positions[:1]), labels=torch.zeros(10_000, dtype=torch.int64), positions=positions)
    tokens = family.batch_condition(batch, BatchStreams(0, positions)).tokens_BMD
    null = family.labels(torch.tensor([NULL]))
    share = (tokens == null).all(dim=(1, 2)).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.01)


def test_the_view_reads_whole_frames_at_every_size_and_frame_0_for_the_image():
    family = tiny_family()
    view = family.view("full")
    assert view.frames == 4
    assert view.sizes == ((16, 8), (8, 4))
    windows = view.cut(5, numpy_stream(0, "x")).windows
    assert list(windows) == ["level0", "level1", "level2"]
    assert [(w.start, w.frames, w.size) for w in windows.values()] == [(5, 1, (8, 4)), (5, 4, (8, 4)), (5, 4, (16, 8))]
    assert all((w.top, w.left, w.height, w.width) == (0, 0, *w.size) for w in windows.values())
    low = family.view("low")
    assert isinstance(low, NestView)
    assert (low.frames, low.sizes, list(low.cut(0, numpy_stream(0, "x")).windows)) == (4, ((8, 4),), ["level0"])


def test_every_tensor_moves_within_a_few_steps_although_much_starts_at_zero():
    family = tiny_family(lively=False)
    before = {name: p.detach().clone() for name, p in family.named_parameters()}
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-3)
    for step in range(5):
        optimizer.zero_grad()
        losses(family, range(8 * step, 8 * step + 8)).total.backward()
        optimizer.step()
    assert [name for name, p in family.named_parameters() if torch.equal(before[name], p)] == []
