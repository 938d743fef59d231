"""Fréchet distance between Gaussians fitted to features: the arithmetic behind FVD.

    FD = |mu_a - mu_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

The last trace is the nuclear norm of F_a F_b^T for any factors C = F^T F, so no matrix square root is taken, the
result is real for singular covariances, and N < d needs no special case beyond its flag. All in float64.

Shapes: N samples, D feature width, R rank of a covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hpdm_core.errors import DataError


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and a factor [R, D] of the covariance (C = F^T F), float64, with what they came from."""

    mean: np.ndarray
    factor: np.ndarray
    trace: float
    count: int

    @property
    def rank_deficient(self) -> bool:
        """Whether too few samples, or constant features, make the covariance singular."""
        return self.factor.shape[0] < self.mean.shape[0]


class Statistics:
    """Streaming first and second moments of features [N, D], float64, about a fixed shift.

    Memory is D^2 whatever N. The shift (by default the first batch's mean) only guards against cancellation.
    """

    def __init__(self, dimension: int, shift: np.ndarray | None = None) -> None:
        self.dimension = dimension
        self.count = 0
        self.fixed = shift is not None
        self.shift = np.zeros(dimension) if shift is None else np.asarray(shift, dtype=np.float64)
        self.total = np.zeros(dimension)
        self.outer = np.zeros((dimension, dimension))

    def update(self, features_ND: np.ndarray) -> Statistics:
        """Add the rows of `features_ND`; raises DataError on a wrong width or a non-finite value."""
        rows = np.asarray(features_ND, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise DataError(f"features have shape {rows.shape}, expected [N, {self.dimension}]")
        require_finite(rows)
        if self.count == 0 and len(rows) and not self.fixed:
            self.shift = rows.mean(axis=0)
        centred = rows - self.shift
        self.total += centred.sum(axis=0)
        self.outer += centred.T @ centred
        self.count += len(rows)
        return self

    def merge(self, other: Statistics) -> Statistics:
        """Add what another stream has seen."""
        if other.count == 0:
            return self
        if self.count == 0:
            self.shift = other.shift.copy()
        move = other.shift - self.shift
        self.outer += other.outer
        if move.any():
            cross = np.outer(other.total, move)
            self.outer += cross + cross.T + other.count * np.outer(move, move)
        self.total += other.total + other.count * move
        self.count += other.count
        return self

    def mean(self) -> np.ndarray:
        """Mean [D]."""
        return self.shift + self.total / max(self.count, 1)

    def covariance(self, ddof: int = 0) -> np.ndarray:
        """Covariance [D, D] divided by N - ddof; raises DataError where N <= ddof."""
        if self.count <= ddof:
            raise DataError(f"a covariance with ddof {ddof} needs more than {self.count} clips")
        centred = self.outer - np.outer(self.total, self.total) / self.count
        return (centred + centred.T) / (2 * (self.count - ddof))

    def gaussian(self, ddof: int = 0) -> Gaussian:
        """The fitted Gaussian, its covariance factored at the rank that N samples can give."""
        covariance = self.covariance(ddof)
        return gaussian_from_moments(self.mean(), covariance, self.count)


def require_finite(features_ND: np.ndarray) -> None:
    """Raise DataError if any feature is NaN or infinite."""
    if not np.isfinite(features_ND).all():
        raise DataError("a clip gave non-finite features", hint="check the weights file and the precision")


def gaussian_from_moments(mean: np.ndarray, covariance: np.ndarray, count: int) -> Gaussian:
    """Factor a covariance estimated from `count` samples.

    N samples span at most N - 1 directions; the remaining eigenvalues are rounding noise whose square
    roots would add about 1e-8 each, so they are dropped by count, and others by relative size.
    """
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(covariance)))
    largest = float(values[-1]) if len(values) else 0.0
    keep = values > max(largest, 0.0) * len(values) * np.finfo(np.float64).eps
    keep[: max(0, len(values) - max(count - 1, 0))] = False
    factor = (vectors[:, keep] * values[keep].sqrt()).T.contiguous().numpy()
    return Gaussian(mean, factor, float(np.trace(covariance)), count)


def gaussian_from_features(features_ND: np.ndarray, ddof: int = 0) -> Gaussian:
    """The Gaussian fitted to the rows of `features_ND`."""
    return Statistics(features_ND.shape[1]).update(features_ND).gaussian(ddof)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians (Dowson & Landau 1982)."""
    if a.mean.shape != b.mean.shape:
        raise DataError(f"feature widths differ: {a.mean.size} and {b.mean.size}")
    shift = float(np.square(a.mean - b.mean).sum())
    overlap = (
        float(torch.linalg.svdvals(torch.from_numpy(a.factor @ b.factor.T)).sum())
        if a.factor.size and b.factor.size
        else 0.0
    )
    return max(shift + a.trace + b.trace - 2.0 * overlap, 0.0)


def frechet_from_features(a_ND: np.ndarray, b_ND: np.ndarray, ddof: int = 0) -> float:
    """Fréchet distance of the Gaussians fitted to two feature tables."""
    return frechet_distance(gaussian_from_features(a_ND, ddof), gaussian_from_features(b_ND, ddof))
