"""Inception Score from a table of class probabilities: exp of the mean KL of each row from the mean row.

IS grows with the number of samples in a split, so the number of splits is part of the number.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpdm_core.errors import DataError


@dataclass(frozen=True)
class InceptionScore:
    """Mean over splits, population standard deviation over splits, and a t interval for the mean."""

    value: float
    std: float
    ci95: tuple[float, float] | None
    splits: int


def inception_score(probabilities_NK: np.ndarray, splits: int = 10, shuffle_seed: int | None = 42) -> InceptionScore:
    """The score of rows that sum to one; 0 log 0 counts as 0.

    `shuffle_seed` orders rows as `RandomState(seed).shuffle` does (StyleGAN-V); None keeps their order.
    Raises DataError with fewer samples than splits.
    """
    rows = np.asarray(probabilities_NK, dtype=np.float64)
    require_splits(len(rows), splits)
    if shuffle_seed is not None:
        # The literature's order is that of NumPy's old generator.
        rows = rows[np.random.RandomState(shuffle_seed).permutation(len(rows))]
    scores = [_score(rows[i * len(rows) // splits : (i + 1) * len(rows) // splits]) for i in range(splits)]
    mean, std = float(np.mean(scores)), float(np.std(scores))
    if splits == 1:
        return InceptionScore(mean, std, None, splits)
    from scipy import stats

    half = float(stats.t.ppf(0.975, splits - 1) * np.std(scores, ddof=1) / np.sqrt(splits))
    return InceptionScore(mean, std, (mean - half, mean + half), splits)


def require_splits(count: int, splits: int) -> None:
    """Raise DataError where `count` samples cannot be cut into `splits`."""
    if count < splits:
        raise DataError(
            f"an Inception Score in {splits} splits needs at least {splits} samples, got {count}",
            hint="score more videos, or use --set inception.splits=1",
        )


def _score(rows_NK: np.ndarray) -> float:
    """exp( E[sum p log p] - sum q log q ), q the mean row."""
    from scipy import special

    mean = rows_NK.mean(axis=0)
    return float(np.exp(special.xlogy(rows_NK, rows_NK).sum(axis=1).mean() - special.xlogy(mean, mean).sum()))
