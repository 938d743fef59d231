"""The Fréchet distance against closed forms, scipy's matrix square root and its own invariances."""

import numpy as np
import pytest
from scipy import linalg

from hpdm_core.errors import DataError
from hpdm_core.metrics.frechet import (
    Statistics,
    frechet_distance,
    frechet_from_features,
    gaussian_from_features,
    gaussian_from_moments,
)


def random_covariance(rng, size):
    root = rng.standard_normal((size, size))
    return root @ root.T / size


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    a, b = rng.uniform(0.1, 3, 12), rng.uniform(0.1, 3, 12)
    mean_a, mean_b = rng.standard_normal((2, 12))
    expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    first = gaussian_from_moments(mean_a, (basis * a) @ basis.T, 10**6)
    second = gaussian_from_moments(mean_b, (basis * b) @ basis.T, 10**6)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_two_by_two_closed_form():
    # For 2x2 matrices tr((AB)^(1/2)) = sqrt(tr(AB) + 2 sqrt(det A det B)).
    rng = np.random.default_rng(1)
    a, b = random_covariance(rng, 2), random_covariance(rng, 2)
    overlap = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    zero = np.zeros(2)
    ours = frechet_distance(gaussian_from_moments(zero, a, 99), gaussian_from_moments(zero, b, 99))
    assert ours == pytest.approx(np.trace(a) + np.trace(b) - 2 * overlap, rel=1e-10)


def test_agrees_with_scipy_sqrtm():
    rng = np.random.default_rng(2)
    a, b = random_covariance(rng, 30), random_covariance(rng, 30)
    mean = rng.standard_normal(30)
    expected = mean @ mean + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    ours = frechet_distance(gaussian_from_moments(mean, a, 999), gaussian_from_moments(mean * 0, b, 999))
    assert ours == pytest.approx(expected, rel=1e-9)


def test_streaming_equals_one_pass_and_merging():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((257, 9)) * 3 + 1000.0
    streamed, left, right = Statistics(9), Statistics(9), Statistics(9)
    for start in range(0, 257, 16):
        streamed.update(rows[start : start + 16])
    merged = left.update(rows[:100]).merge(right.update(rows[100:]))
    for statistics in (streamed, merged):
        assert statistics.count == 257
        np.testing.assert_allclose(statistics.mean(), rows.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(statistics.covariance(1), np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)
    assert Statistics(9).merge(streamed).covariance() == pytest.approx(streamed.covariance(), rel=1e-12)


def test_fewer_samples_than_features_is_exact_and_flagged():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((20, 50)), rng.standard_normal((25, 50)) + 0.3
    x, y = (a - a.mean(0)) / np.sqrt(20), (b - b.mean(0)) / np.sqrt(25)
    expected = (
        np.square(a.mean(0) - b.mean(0)).sum()
        + np.square(x).sum()
        + np.square(y).sum()
        - 2 * np.linalg.norm(x @ y.T, "nuc")
    )
    assert frechet_from_features(a, b) == pytest.approx(expected, rel=1e-11)
    assert gaussian_from_features(a).rank_deficient
    assert not gaussian_from_features(rng.standard_normal((200, 50))).rank_deficient


def test_distance_to_itself_and_constant_features():
    rows = np.random.default_rng(5).standard_normal((64, 8))
    assert frechet_from_features(rows, rows) == pytest.approx(0.0, abs=1e-12)
    ones = np.ones((5, 8))
    assert frechet_from_features(ones, ones * 3) == pytest.approx(4.0 * 8)


def test_bad_features_are_named():
    with pytest.raises(DataError, match="non-finite"):
        Statistics(2).update(np.array([[0.0, np.nan]]))
    with pytest.raises(DataError, match="expected"):
        Statistics(2).update(np.zeros((3, 4)))
    with pytest.raises(DataError, match="ddof 1"):
        Statistics(2).update(np.zeros((1, 2))).covariance(1)
