"""Scaled diffusion and its parametrisations: shift identity, round trips (structural test viii), weights."""

import math

import pytest
import torch

from hpdm_core.diffusion.guidance import guide
from hpdm_core.diffusion.process import Parametrisation, corrupt

OUTPUTS = ["edm_v", "v", "eps", "x"]
SCALES = [0.5, 1.0, 4.0, 16.0, 64.0]


def draws(rows=64, seed=0):
    """x, eps [rows, 3, 4] and sigma [rows] over five decades, float64."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, rows, 3, 4, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(-3, 2, rows, dtype=torch.float64)
    return x, eps, sigma


def wide(sigma):
    return sigma[:, None, None]


@pytest.mark.parametrize("scale", SCALES)
def test_shift_identity_measured_snr_is_the_schedules_times_the_shift(scale):
    """logSNR = -2 ln sigma - 2 ln s, from powers measured on samples."""
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 1, 400_000, generator=generator, dtype=torch.float64)
    for sigma in (0.05, 1.0, 20.0):
        level = torch.tensor([sigma], dtype=torch.float64)
        signal = corrupt(x, 0 * eps, level, scale)
        noise = corrupt(0 * x, eps, level, scale)
        measured = math.log((signal.var() / noise.var()).item())
        assert measured == pytest.approx(-2 * math.log(sigma) - 2 * math.log(scale), abs=0.01)


@pytest.mark.parametrize("scale", SCALES)
def test_the_scaled_state_times_c_in_is_shifted_variance_preserving(scale):
    """families §1.2, last row: alpha² = sigmoid(logSNR), beta² = sigmoid(-logSNR)."""
    x, eps, sigma = draws()
    z = Parametrisation(scale=scale).network_input(corrupt(x, eps, sigma, scale), sigma)
    log_snr = wide(-2 * sigma.log() - 2 * math.log(scale))
    torch.testing.assert_close(z, log_snr.sigmoid().sqrt() * x + (-log_snr).sigmoid().sqrt() * eps)


def test_chens_input_scaling_is_a_shift_of_2_ln_b():
    """x_t = sqrt(g) b x + sqrt(1 - g) eps, divided by its analytic deviation, is the process with s = 1 / b."""
    x, eps, sigma = draws()
    gamma, b = wide(1 / (1 + sigma**2)), 0.3
    chen = (gamma.sqrt() * b * x + (1 - gamma).sqrt() * eps) / (gamma * b**2 + 1 - gamma).sqrt()
    ours = Parametrisation(scale=1 / b).network_input(corrupt(x, eps, sigma, 1 / b), sigma)
    torch.testing.assert_close(chen, ours)
    log_snr = -2 * sigma.log() + 2 * math.log(b)
    torch.testing.assert_close(chen, wide(log_snr).sigmoid().sqrt() * x + wide(-log_snr).sigmoid().sqrt() * eps)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("scale", SCALES)
def test_viii_the_exact_v_target_gives_x_back(scale, sigma_data):
    form = Parametrisation(scale=scale, sigma_data=sigma_data)
    x, eps, sigma = draws()
    u = corrupt(x, eps, sigma, scale)
    torch.testing.assert_close(form.denoised(u, form.target(x, eps, sigma), sigma), x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("scale", SCALES)
def test_round_trip_of_every_output(output, scale):
    form = Parametrisation(output=output, weighting="output", scale=scale)
    x, eps, sigma = draws(seed=1)
    u = corrupt(x, eps, sigma, scale)
    target = form.target(x, eps, sigma)
    torch.testing.assert_close(form.denoised(u, target, sigma), x, atol=1e-9, rtol=0)
    # A number for sigma, as solvers give it, means the same as a column of equal ones.
    one = form.denoised(u[7:8], target[7:8], float(sigma[7]))
    torch.testing.assert_close(one, x[7:8], atol=1e-9, rtol=0)


def test_round_trip_survives_single_precision_over_the_training_range():
    for scale in SCALES:
        form = Parametrisation(scale=scale)
        x, eps, sigma = (t.float() for t in draws())
        u = corrupt(x, eps, sigma, scale)
        restored = form.denoised(u, form.target(x, eps, sigma), sigma)
        # What cancels at high noise is of the size of s * sigma.
        tolerance = 2e-6 * (1 + scale * wide(sigma))
        assert ((restored - x).abs() <= tolerance).all()


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", SCALES)
def test_weight_identity_lambda_times_c_out_squared(scale, sigma_data):
    """spec §2.2: w = (sigma² + d²)² / (sigma² + d² / s)²."""
    _, _, sigma = draws()
    d2 = sigma_data**2
    expected = (sigma**2 + d2) ** 2 / (sigma**2 + d2 / scale) ** 2
    torch.testing.assert_close(Parametrisation(scale=scale, sigma_data=sigma_data).weight(sigma), expected)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_weightings_measure_the_same_error_in_every_output_space(output, scale):
    """A wrong clean estimate costs 1 + 1 / sigma² under `edm`, 1 / (s sigma)² as noise, in every output space."""
    x, eps, sigma = draws(seed=2)
    u = corrupt(x, eps, sigma, scale)
    wrong = {}
    for weighting in ("edm", "eps", "output"):
        form = Parametrisation(output=output, weighting=weighting, scale=scale)
        target = form.target(x, eps, sigma)
        guess = target + 0.1
        error = form.denoised(u, guess, sigma) - x
        wrong[weighting] = wide(form.weight(sigma)) * (guess - target).square()
        if weighting == "edm":
            torch.testing.assert_close(wrong["edm"], wide(1 + 1 / sigma**2) * error.square())
        if weighting == "eps":
            implied = (u - (x + error) / scale) / wide(sigma) - eps
            torch.testing.assert_close(wrong["eps"], implied.square(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(wrong["output"], torch.full_like(x, 0.01))


def test_edm_v_and_v_agree_where_nothing_is_scaled():
    x, eps, sigma = draws()
    plain, shifted = Parametrisation("edm_v"), Parametrisation("v")
    torch.testing.assert_close(plain.target(x, eps, sigma), shifted.target(x, eps, sigma))
    u = corrupt(x, eps, sigma, 1.0)
    torch.testing.assert_close(plain.denoised(u, x, sigma), shifted.denoised(u, x, sigma))
    # With a scale they differ: hpdm's coefficients stay those of ordinary v-prediction.
    assert not torch.allclose(Parametrisation("v", scale=4.0).target(x, eps, sigma), plain.target(x, eps, sigma))


@pytest.mark.parametrize("scale", SCALES)
def test_network_input_and_target_have_unit_variance(scale):
    generator = torch.Generator().manual_seed(0)
    for d in (0.5, 1.0):
        form = Parametrisation(scale=scale, sigma_data=d)
        x, eps = torch.randn(2, 5, 100_000, generator=generator, dtype=torch.float64)
        sigma = torch.tensor([0.01, 0.3, 1.0, 5.0, 80.0], dtype=torch.float64)
        for value in (form.network_input(corrupt(d * x, eps, sigma, scale), sigma), form.target(d * x, eps, sigma)):
            torch.testing.assert_close(value.var(dim=1), torch.ones(5, dtype=torch.float64), atol=0.03, rtol=0)


def test_sigma_is_one_number_per_row():
    x, eps, _ = draws(rows=3)
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    together = corrupt(x, eps, sigma, 2.0)
    for row in range(3):
        torch.testing.assert_close(together[row], x[row] / 2 + sigma[row] * eps[row])


def test_guidance_of_one_is_conditional_and_of_zero_is_not():
    conditional, unconditional = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    assert guide(conditional, unconditional, 3.0).tolist() == [3.0, -4.0]
