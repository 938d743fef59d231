"""Kernel distances: squared maximum mean discrepancy with polynomial kernels (KVD, JEDi).

k(x, y) = (x.y / D + c)^p in float64. KVD as DIGAN reports it is the unbiased estimate with p = 3, c = 1; JEDi is 100
times the biased one with p = 2, c = 0. Rows are visited in blocks, so no N x N table is held.

Shapes: N M samples, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpdm_core.errors import DataError

_BLOCK = 1024


@dataclass(frozen=True)
class KernelDistance:
    """Squared MMD and its standard error (first order, by row means of the kernel)."""

    value: float
    standard_error: float


def kernel_video_distance(fake_ND: np.ndarray, real_MD: np.ndarray) -> KernelDistance:
    """KVD: unbiased MMD^2, degree 3, offset 1; it can be slightly negative."""
    return polynomial_mmd(fake_ND, real_MD, degree=3, offset=1.0, unbiased=True)


def jedi_distance(fake_ND: np.ndarray, real_MD: np.ndarray) -> KernelDistance:
    """JEDi's form: 100 times the biased MMD^2, degree 2, no offset. JEDi proper uses V-JEPA features."""
    found = polynomial_mmd(fake_ND, real_MD, degree=2, offset=0.0, unbiased=False)
    return KernelDistance(100.0 * found.value, 100.0 * found.standard_error)


def polynomial_mmd(x_ND: np.ndarray, y_MD: np.ndarray, *, degree: int, offset: float, unbiased: bool) -> KernelDistance:
    """Squared MMD of two samples with the kernel (x.y / D + offset)^degree. DataError below two samples."""
    x, y = np.asarray(x_ND, dtype=np.float64), np.asarray(y_MD, dtype=np.float64)
    if min(len(x), len(y)) < 2:
        raise DataError("a kernel distance needs at least two clips on each side")
    within_x = _row_means(x, x, degree, offset, skip_self=unbiased)
    within_y = _row_means(y, y, degree, offset, skip_self=unbiased)
    across_x = _row_means(x, y, degree, offset)
    across_y = _row_means(y, x, degree, offset)
    value = within_x.mean() + within_y.mean() - 2.0 * across_x.mean()
    variance = 4.0 * (_variance_of_mean(within_x - across_x) + _variance_of_mean(within_y - across_y))
    return KernelDistance(float(value), float(np.sqrt(variance)))


def _variance_of_mean(rows: np.ndarray) -> float:
    return float(rows.var(ddof=1) / len(rows)) if len(rows) > 1 else float("nan")


def _row_means(a: np.ndarray, b: np.ndarray, degree: int, offset: float, skip_self: bool = False) -> np.ndarray:
    """Mean over b of k(a_i, b_j), leaving out j = i if asked."""
    sums = np.zeros(len(a))
    for start in range(0, len(b), _BLOCK):
        sums += ((a @ b[start : start + _BLOCK].T / a.shape[1] + offset) ** degree).sum(axis=1)
    if not skip_self:
        return sums / len(b)
    sums -= (np.square(a).sum(axis=1) / a.shape[1] + offset) ** degree
    return sums / (len(b) - 1)
