"""Noise schedules: the law of training draws, sampling grids, tables against their published end points."""

import math

import pytest
import torch

from hpdm_core.diffusion.schedule import DiscreteTable, LogNormal, cosine, scaled_linear
from hpdm_core.errors import ConfigError


def log_snr(table):
    return -2 * table.sigmas().log()


def test_draws_follow_the_log_normal():
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    logs = LogNormal(mean=-1.2, std=1.2).draw(uniform).log()
    assert logs.mean() == pytest.approx(-1.2, abs=0.01)
    assert logs.std() == pytest.approx(1.2, abs=0.01)
    # A quantile is a quantile: the draw is monotone in the uniform number.
    assert (logs < -1.2).float().mean() == pytest.approx(0.5, abs=0.005)
    assert LogNormal(0.7, 0.5).draw(torch.tensor([0.5])).item() == pytest.approx(math.exp(0.7), rel=1e-6)


def test_extreme_uniform_numbers_give_finite_noise_levels():
    sigma = LogNormal().draw(torch.tensor([[0.0, 1 - 2**-24]]))
    assert sigma.shape == (1, 2)
    assert torch.isfinite(sigma).all()
    assert (sigma > 0).all()


@pytest.mark.parametrize("num_steps", [1, 2, 8, 128])
def test_the_karras_grid(num_steps):
    schedule = LogNormal(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    grid = schedule.grid(num_steps)
    assert grid.dtype == torch.float64
    assert len(grid) == num_steps + 1
    assert grid[0].item() == pytest.approx(80.0)
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    if num_steps > 1:
        assert grid[-2].item() == pytest.approx(0.002)
        i = num_steps // 2
        high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
        assert grid[i].item() == pytest.approx((high + i / (num_steps - 1) * (low - high)) ** 7)


def test_noise_coordinate_of_edm():
    sigma = torch.tensor([0.002, 1.0, 80.0])
    torch.testing.assert_close(LogNormal().coordinate(sigma), sigma.log() / 4)
    assert torch.isfinite(LogNormal().coordinate(torch.zeros(1))).all()


def test_the_table_of_pvdm_is_a_variance_preserving_schedule_from_6_50_to_minus_8_86():
    table = scaled_linear(0.0015, 0.0195)
    ends = log_snr(table)
    assert len(ends) == 1000
    assert ends[0].item() == pytest.approx(6.50, abs=0.005)
    assert ends[-1].item() == pytest.approx(-8.86, abs=0.005)
    # Against the recursion itself: z_t = sqrt(1 - beta) z + sqrt(beta) eps, signal and noise power.
    signal, noise = 1.0, 0.0
    for root in torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64).tolist():
        beta = root**2
        signal, noise = (1 - beta) * signal, (1 - beta) * noise + beta
    assert ends[-1].item() == pytest.approx(math.log(signal / noise), abs=1e-9)


def test_the_cosine_schedule():
    table = cosine(1000)
    abar = torch.tensor(table.abar, dtype=torch.float64)

    def signal(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for i in (0, 249, 499, 899):
        assert abar[i].item() == pytest.approx(signal((i + 1) / 1000) / signal(0), rel=1e-9)
    assert (abar.diff() < 0).all()
    # The last beta is capped at 0.999: nearly no signal, but not none.
    assert 0 < abar[-1] < 1e-5
    assert (1 - abar[-1] / abar[-2]).item() == pytest.approx(0.999)


@pytest.mark.parametrize("table", [scaled_linear(0.0015, 0.0195), cosine(1000), cosine(10)])
def test_the_coordinate_of_a_table_is_its_time(table):
    num_times = len(table.abar)
    times = torch.arange(num_times, dtype=torch.float64)
    torch.testing.assert_close(table.coordinate(table.sigmas()) * num_times, times, atol=1e-6, rtol=0)
    between = (table.sigmas()[3].log() + table.sigmas()[4].log()).div(2).exp()
    assert (table.coordinate(between[None]) * num_times).item() == pytest.approx(3.5)
    # Beyond the table's ends: the ends.
    assert table.coordinate(torch.tensor([0.0, 1e9])).mul(num_times).round().tolist() == [0, num_times - 1]


def test_draws_from_a_table_are_uniform_over_its_times():
    table = cosine(8)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    times = (table.coordinate(table.draw(uniform)) * 8).round().long()
    share = torch.bincount(times, minlength=8) / len(times)
    torch.testing.assert_close(share, torch.full((8,), 1 / 8), atol=0.01, rtol=0)
    assert torch.isfinite(table.draw(torch.tensor([0.0, 1 - 2**-24]))).all()


def test_sampling_grids_of_a_table_begin_at_its_last_time():
    table = scaled_linear(0.0015, 0.0195)
    for num_steps in (1, 4, 100, 1000):
        grid = table.grid(num_steps)
        assert len(grid) == num_steps + 1
        assert grid[0] == table.sigmas()[-1]
        assert grid[-1] == 0
        assert (grid.diff() < 0).all()
    assert table.grid(4)[-2] == table.sigmas()[0]


def test_more_steps_than_times_are_refused():
    with pytest.raises(ConfigError, match="10 times"):
        DiscreteTable(cosine(10).abar).grid(11)


def test_a_table_is_copied_to_a_device_once():
    """A CUDA graph of a training step can hold no copy from the host."""
    table = scaled_linear(0.0015, 0.0195)
    assert table.sigmas() is table.sigmas(torch.device("cpu"))
    assert table == scaled_linear(0.0015, 0.0195)
