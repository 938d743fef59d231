"""Kernel distances and Inception Score against direct formulas and closed forms."""

import numpy as np
import pytest

from hpdm_core.errors import DataError
from hpdm_core.metrics.inception import inception_score
from hpdm_core.metrics.kernel import kernel_video_distance, polynomial_mmd


def test_unbiased_mmd_by_the_double_sum():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 4)), rng.standard_normal((9, 4)) + 0.5

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    xx = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kernel_video_distance(x, y).value == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_blocks_do_not_change_the_value():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((1500, 6)), rng.standard_normal((1100, 6))
    whole = ((x @ y.T / 6) ** 2).mean()
    direct = ((x @ x.T / 6) ** 2).mean() + ((y @ y.T / 6) ** 2).mean() - 2 * whole
    assert polynomial_mmd(x, y, degree=2, offset=0.0, unbiased=False).value == pytest.approx(direct, rel=1e-9)


def test_kernel_interval_covers():
    values, errors = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = kernel_video_distance(rng.standard_normal((120, 5)) * 1.3 + 0.4, rng.standard_normal((120, 5)))
        values.append(found.value)
        errors.append(found.standard_error)
    coverage = np.mean(np.abs(np.array(values) - np.mean(values)) <= 1.96 * np.array(errors))
    assert coverage >= 0.88


def test_perfect_and_useless_classifiers():
    perfect = np.eye(5)[np.arange(100) % 5]
    assert inception_score(perfect, 1).value == pytest.approx(5.0)
    useless = np.full((100, 5), 0.2)
    assert inception_score(useless, 10).value == pytest.approx(1.0)


def test_interval_and_too_few_samples():
    rows = np.random.default_rng(0).dirichlet(np.ones(6), 200)
    found = inception_score(rows, 10)
    assert found.ci95[0] < found.value < found.ci95[1]
    assert inception_score(rows, 1).ci95 is None
    with pytest.raises(DataError, match="at least 10"):
        inception_score(rows[:9], 10)
