"""Solvers against Gaussian data, whose denoiser and probability-flow ODE are known in closed form.

For x ~ N(mean, spread²) and u = x / s + sigma eps, with m = mean / s and v = spread / s:
D(u) / s = m + v² / (v² + sigma²) (u - m), and the ODE moves u - m in proportion to sqrt(v² + sigma²).
"""

import itertools
import math

import pytest
import torch

from hpdm_core.diffusion.schedule import LogNormal
from hpdm_core.errors import ConfigError
from hpdm_core.sampling.solvers import SOLVERS, solver_info

SCHEDULE = LogNormal()
MEANS, SPREADS = {"a": 0.5, "b": -0.25}, {"a": 0.7, "b": 0.1}
SCALED = {name: SPREADS[name] ** 2 for name in SPREADS}


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, state, sigma):
        self.calls += 1
        return self.function(state, sigma)


def gaussian_denoiser(state, sigma):
    """The posterior mean of each component, in scaled coordinates."""
    return {k: MEANS[k] + SCALED[k] / (SCALED[k] + sigma**2) * (u - MEANS[k]) for k, u in state.items()}


def noise_of(shape, seed=0):
    def noise(step):
        generator = torch.Generator().manual_seed(1000 * seed + step + 1)
        return {k: torch.randn(shape, generator=generator, dtype=torch.float64) for k in MEANS}

    return noise


def silent(step, calls):
    pass


def run(name, sigmas, size=2000, denoise=gaussian_denoiser, **options):
    noise = noise_of(size)
    start = {k: float(sigmas[0]) * eps for k, eps in noise(-1).items()}
    return start, solver_info(name).run(denoise, start, sigmas, noise, silent, **options)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("euler", {}, 400),
        ("heun", {}, 60),
        ("heun", {"churn": 10.0, "churn_noise": 1.0}, 200),
        ("ddim", {"eta": 0.5}, 400),
        ("ancestral", {}, 1000),
        ("dpmpp_2m", {}, 80),
    ],
)
def test_gaussian_data_comes_out_with_its_mean_and_spread(name, options, steps):
    _, samples = run(name, SCHEDULE.grid(steps), size=10_000, **options)
    for k, values in samples.items():
        assert values.mean().item() == pytest.approx(MEANS[k], abs=0.03 * SPREADS[k] + 0.003)
        assert values.std().item() == pytest.approx(SPREADS[k], rel=0.025)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_measured_order_of_convergence(name, order):
    """Error against the exact flow from sigma 5 to 0.05 on log-spaced grids, halving the steps."""
    high, low = 5.0, 0.05
    errors = []
    for steps in (40, 80, 160):
        sigmas = torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64)
        start, end = run(name, sigmas, size=200)
        worst = 0.0
        for k in MEANS:
            factor = math.sqrt((SCALED[k] + low**2) / (SCALED[k] + high**2))
            exact = MEANS[k] + factor * (start[k] - MEANS[k])
            worst = max(worst, (end[k] - exact).abs().max().item())
        errors.append(worst)
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_oracle_recovers_the_data_and_calls_are_as_registered(name, steps):
    target = {k: torch.randn(5, 3, dtype=torch.float64) for k in MEANS}
    oracle = Counted(lambda state, sigma: target)
    told = []
    sigmas, noise = SCHEDULE.grid(steps), noise_of((5, 3))
    start = {k: 80 * eps for k, eps in noise(-1).items()}
    end = solver_info(name).run(oracle, start, sigmas, noise, lambda step, calls: told.append((step, calls)))
    for k in target:
        torch.testing.assert_close(end[k], target[k], atol=1e-12, rtol=0)
    assert oracle.calls == solver_info(name).calls(steps) == sum(calls for _, calls in told)
    assert told == list(enumerate(solver_info(name).step_calls(steps)))


@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_solver_leaves_its_start_alone(name):
    start, _ = run(name, SCHEDULE.grid(3), size=10)
    assert all(torch.equal(start[k], 80 * eps) for k, eps in noise_of(10)(-1).items())


def test_ddim_without_eta_is_euler_exactly():
    for steps in (1, 5, 33):
        _, euler = run("euler", SCHEDULE.grid(steps))
        _, ddim = run("ddim", SCHEDULE.grid(steps))
        assert all(torch.equal(euler[k], ddim[k]) for k in euler)


def test_ddim_with_eta_one_is_ancestral_exactly():
    _, ancestral = run("ancestral", SCHEDULE.grid(9))
    _, ddim = run("ddim", SCHEDULE.grid(9), eta=1.0)
    assert all(torch.equal(ancestral[k], ddim[k]) for k in ddim)


def test_heun_without_churn_is_deterministic_and_with_churn_is_not():
    def forbidden(step):
        raise AssertionError("a deterministic solver asked for noise")

    start = {k: 80 * eps for k, eps in noise_of(50)(-1).items()}
    first = SOLVERS["heun"].run(gaussian_denoiser, start, SCHEDULE.grid(8), forbidden, silent)
    second = SOLVERS["heun"].run(gaussian_denoiser, start, SCHEDULE.grid(8), noise_of(50, seed=9), silent, churn=0.0)
    churned = SOLVERS["heun"].run(gaussian_denoiser, start, SCHEDULE.grid(8), noise_of(50), silent, churn=20.0)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["a"], churned["a"])


def test_churn_adds_the_noise_of_edms_algorithm_2():
    """One step to zero: D at the raised noise level, of the state with fresh noise added."""
    sigmas = torch.tensor([2.0, 0.0], dtype=torch.float64)
    seen = []

    def denoise(state, sigma):
        seen.append((state["a"], sigma))
        return state

    noise = noise_of(5)
    start = {k: torch.zeros(5, dtype=torch.float64) for k in MEANS}
    SOLVERS["heun"].run(denoise, start, sigmas, noise, silent, churn=0.3, churn_noise=1.003)
    state, sigma = seen[0]
    assert sigma == pytest.approx(2.6)
    torch.testing.assert_close(state, 1.003 * math.sqrt(2.6**2 - 2.0**2) * noise(0)["a"])
    # The increase is capped at sqrt(2) - 1, and noise levels outside the range are left alone.
    for churn, raised, given in (
        (50.0, 2 * 2**0.5, {}),
        (50.0, 2.0, {"churn_max": 1.0}),
        (50.0, 2.0, {"churn_min": 3.0}),
    ):
        seen.clear()
        SOLVERS["heun"].run(denoise, start, sigmas, noise, silent, churn=churn, **given)
        assert seen[0][1] == pytest.approx(raised)


def test_ancestral_steps_have_the_posteriors_mean_and_variance():
    """q(z_then | z_now, x) of the variance-preserving chain, compared after dividing by the signal at `then`."""
    now, then, x = 3.0, 1.2, 0.4
    sigmas = torch.tensor([now, then], dtype=torch.float64)
    noise = noise_of(200_000)
    u = {"a": torch.full((200_000,), 2.0, dtype=torch.float64)}
    exact = {"a": torch.full((200_000,), x, dtype=torch.float64)}
    moved = SOLVERS["ancestral"].run(lambda state, sigma: exact, u, sigmas, noise, silent)["a"]
    abar_now, abar_then = 1 / (1 + now**2), 1 / (1 + then**2)
    alpha = abar_now / abar_then
    variance = (1 - abar_then) / (1 - abar_now) * (1 - alpha)
    mean = (math.sqrt(abar_then) * (1 - alpha) * x + math.sqrt(alpha) * (1 - abar_then) * math.sqrt(abar_now) * 2.0) / (
        1 - abar_now
    )
    assert moved.mean().item() == pytest.approx(mean / math.sqrt(abar_then), abs=0.01)
    assert moved.var().item() == pytest.approx(variance / abar_then, rel=0.01)


def test_components_do_not_mix_and_share_one_grid():
    """A component's result is the same whatever travels beside it, for different scales of the same data."""
    scales = {"a": 1.0, "b": 8.0}

    def denoise(state, sigma):
        return {k: (0.25 / scales[k] ** 2) / (0.25 / scales[k] ** 2 + sigma**2) * u for k, u in state.items()}

    start = {k: 80 * torch.randn(10_000, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
             for i, k in enumerate(scales)}  # fmt: skip
    for name in SOLVERS:
        together = SOLVERS[name].run(denoise, start, SCHEDULE.grid(150), noise_of(10_000), silent)
        alone = SOLVERS[name].run(denoise, {"b": start["b"]}, SCHEDULE.grid(150), noise_of(10_000), silent)
        assert torch.equal(together["b"], alone["b"])
        for k, scale in scales.items():
            assert (together[k] * scale).std().item() == pytest.approx(0.5, rel=0.07)


def test_unknown_solvers_are_named():
    with pytest.raises(ConfigError, match="rk45") as error:
        solver_info("rk45")
    assert "heun" in error.value.hint
