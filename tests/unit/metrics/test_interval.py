"""Coverage of the FVD interval on Gaussians, and the limit for many samples, whose truth is known."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from hpdm_core.metrics.frechet import frechet_distance, gaussian_from_features
from hpdm_core.metrics.interval import (
    GROUPS,
    HALVES,
    NORMAL_95,
    _distance,
    _grouped,
    frechet_limit,
    frechet_standard_error,
)

WIDTH, COUNT, REPEATS = 20, 200, 200


def draws(seed, shift, scale, count=COUNT, width=WIDTH):
    rng = np.random.default_rng([seed, 7])
    mixing = np.random.default_rng(0).standard_normal((width, width)) / np.sqrt(width)
    fake = rng.standard_normal((count, width)) @ mixing.T * scale + shift
    return fake, rng.standard_normal((count, width)) @ mixing.T


def truth(shift, scale, width=WIDTH):
    mixing = np.random.default_rng(0).standard_normal((width, width)) / np.sqrt(width)
    return width * shift**2 + (scale - 1) ** 2 * np.trace(mixing @ mixing.T)


def one(fake, real):
    a, b = gaussian_from_features(fake), gaussian_from_features(real)
    return frechet_distance(a, b), frechet_standard_error(fake, real, a, b)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.05, 1.1), (0.3, 1.5)])
def test_interval_covers_the_expected_value_at_this_n(shift, scale):
    found = [one(*draws(seed, shift, scale)) for seed in range(REPEATS)]
    values, errors = np.array([v for v, _ in found]), np.array([e.total for _, e in found])
    coverage = np.mean(np.abs(values - values.mean()) <= NORMAL_95 * errors)
    assert coverage >= 0.91  # two standard errors of a 95 % rate in 200 trials
    # Conservative where both samples come from one distribution, else of the right size.
    assert 0.85 < errors.mean() / values.std(ddof=1) < (1.6 if shift == 0 or scale < 1.2 else 1.2)


def test_parts_of_the_error_add_up():
    fake, real = draws(0, 0.3, 1.5)
    _, error = one(fake, real)
    assert error.total == pytest.approx(np.hypot(error.fake, error.real))
    _, more_real = one(fake, np.concatenate([real, draws(1, 0.3, 1.5)[1], draws(2, 0.3, 1.5)[1]]))
    assert more_real.real < error.real


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.5)])
def test_limit_is_unbiased_and_covered(shift, scale):
    true = truth(shift, scale)
    samples = [draws(seed, shift, scale) for seed in range(40)]
    limits = [frechet_limit(fake, real) for fake, real in samples]
    values = np.array([limit.value for limit in limits])
    plain = np.mean([one(fake, real)[0] for fake, real in samples])
    # The plain value is biased by an amount that the limit removes to within its own spread.
    assert abs(values.mean() - true) < 0.15 * (plain - true) + 2 * values.std() / np.sqrt(40)
    assert np.mean([limit.ci95[0] <= true <= limit.ci95[1] for limit in limits]) >= 0.9
    assert not any(limit.rough for limit in limits)


def test_halves_are_balanced_with_and_without_a_group():
    """Every triple is in one half of all; of the halves without a group, every pair of the others is in two."""
    triples = Counter(triple for half in HALVES for triple in combinations(half, 3))
    assert len(triples) == 56
    assert set(triples.values()) == {1}
    for left_out in GROUPS:
        pairs = Counter(pair for half in HALVES if left_out not in half for pair in combinations(half, 2))
        assert len(pairs) == 21
        assert set(pairs.values()) == {2}


def test_distances_of_unions_are_those_of_their_rows():
    fake, real = draws(0, 0.1, 1.2, count=96)
    sides = tuple(_grouped(rows, np.random.default_rng(0)) for rows in (fake, real))
    order = np.random.default_rng(0).permutation(96)
    for chosen in (GROUPS, HALVES[0], HALVES[5][:1]):
        rows = np.concatenate([order.reshape(8, 12)[group] for group in chosen])
        expected = frechet_distance(gaussian_from_features(fake[rows], 1), gaussian_from_features(real[rows], 1))
        assert _distance(sides, chosen, 1) == pytest.approx(expected, rel=1e-6)


def test_error_of_the_limit_is_of_the_right_size_away_from_zero():
    limits = [frechet_limit(*draws(seed, 0.3, 1.5)) for seed in range(60)]
    spread = np.std([limit.value for limit in limits], ddof=1)
    assert 0.8 < np.mean([limit.standard_error for limit in limits]) / spread < 1.6


def test_limit_needs_as_many_samples_as_features():
    fake, real = draws(0, 0.0, 1.0, count=59, width=60)
    assert frechet_limit(fake, real) is None
    fake, real = draws(0, 0.0, 1.0, count=80, width=60)
    assert frechet_limit(fake, real).rough
    assert frechet_limit(fake[:, :5], real[:15, :5]) is None  # fewer than two per group


def test_limit_is_deterministic():
    fake, real = draws(3, 0.1, 1.2)
    assert frechet_limit(fake, real) == frechet_limit(fake, real)


def test_singular_covariances_have_an_error_too():
    fake, real = draws(0, 0.1, 1.2, count=15)
    _, error = one(fake, real)
    assert np.isfinite(error.total)
    assert error.total > 0
