"""Fréchet distances from given features against the values that exact float64 arithmetic gives."""

import numpy as np
import pytest

from hpdm_core.metrics.frechet import frechet_from_features
from tests.golden.metrics_recipes import gaussian_features

# (N, ddof): value. N < 400 is rank-deficient; scipy's sqrtm gives the same numbers to about 1e-7.
EXPECTED = {
    (2048, 0): 9.162174813801926,
    (2048, 1): 9.165996847409929,
    (256, 0): 47.391123594164924,
    (256, 1): 47.563642474269386,
    (64, 0): 161.17097535615426,
    (64, 1): 163.57978619726146,
    (16, 0): 333.97981795229805,
    (16, 1): 354.3810640761947,
}


def test_recipe_is_intact():
    assert gaussian_features(16, 11, 0.05, 1.1)[0, :4] == pytest.approx(
        [0.5577954649925232, 1.752371072769165, -0.3763657212257385, -0.3082816004753113], abs=1e-7
    )


@pytest.mark.parametrize(("count", "ddof"), EXPECTED)
def test_frechet_matches_the_golden_value(count, ddof):
    fake, real = gaussian_features(count, 11, 0.05, 1.1), gaussian_features(count, 12, 0.0, 1.0)
    assert frechet_from_features(fake, real, ddof) == pytest.approx(EXPECTED[count, ddof], rel=1e-9)


def test_frechet_is_symmetric_to_rounding():
    fake, real = gaussian_features(64, 11, 0.05, 1.1), gaussian_features(64, 12, 0.0, 1.0)
    assert frechet_from_features(real, fake) == pytest.approx(frechet_from_features(fake, real), rel=1e-12)
    assert np.isfinite(frechet_from_features(real, real))
