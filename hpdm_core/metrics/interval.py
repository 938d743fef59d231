"""How far an FVD can be trusted: a 95 % interval at the protocol's N, and the limit N -> infinity.

FVD of N clips is biased upwards by about c/N. The interval is for the protocol's number itself, that is for what other
draws of as many clips would give; resampling with replacement would add bias of its own, so the standard error
comes from the distance's influence function (the infinitesimal jackknife). The limit removes the 1/N bias by
comparing the full sets with halves drawn without replacement; its error is a delete-a-group jackknife.

Shapes: N samples, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpdm_core.metrics.frechet import Gaussian, Statistics, frechet_distance
from hpdm_core.rng import numpy_stream

NORMAL_95 = 1.96
T_95_7_DEGREES = 2.365
NUM_GROUPS = 8
GROUPS = range(NUM_GROUPS)
HALF = NUM_GROUPS // 2
HALVES = tuple(
    tuple(group for group in GROUPS if (row & group).bit_count() % 2 == sign) for row in GROUPS[1:] for sign in (0, 1)
)
"""Balanced half-samples (McCarthy 1969), the rows of a Hadamard matrix of order 8: the fourteen halves hold each group,
pair and triple of groups equally often. The seven without a given group are balanced too, so which groups form a half
adds no first-order noise to the error."""


@dataclass(frozen=True)
class StandardError:
    """Standard error of a distance, and the parts that the two samples contribute."""

    fake: float
    real: float

    @property
    def total(self) -> float:
        """Both samples together."""
        return float(np.hypot(self.fake, self.real))


@dataclass(frozen=True)
class Limit:
    """FVD extrapolated to infinitely many clips, its standard error and 95 % interval (t with 7 degrees).

    `rough`: with fewer than two samples per feature the halves are singular, and about a tenth of the bias remains.
    """

    value: float
    standard_error: float
    ci95: tuple[float, float]
    rough: bool


def frechet_standard_error(fake_ND: np.ndarray, real_ND: np.ndarray, fake: Gaussian, real: Gaussian) -> StandardError:
    """Standard error of `frechet_distance(fake, real)` from the features the Gaussians were fitted to."""
    return StandardError(_one_sided_error(fake_ND, fake, real), _one_sided_error(real_ND, real, fake))


def _one_sided_error(rows_ND: np.ndarray, own: Gaussian, other: Gaussian) -> float:
    """The error that sampling `rows_ND` contributes.

    A row x (centred) moves the distance by 2 x.(mu - mu') + x^T (I - T) x, where T is the optimal transport map
    from `own` to `other`: T = F^+ P S P^T F^+T with F F'^T = P S Q^T.
    """
    centred = np.asarray(rows_ND, dtype=np.float64) - own.mean
    influence = np.square(centred).sum(axis=1) + 2.0 * centred @ (own.mean - other.mean)
    if own.factor.size and other.factor.size:
        left, singular, _ = torch.linalg.svd(torch.from_numpy(own.factor @ other.factor.T), full_matrices=False)
        scale = np.square(own.factor).sum(axis=1, keepdims=True)
        # The small matrices first: one product with N rows instead of two.
        influence -= np.square(centred @ ((own.factor / scale).T @ left.numpy())) @ singular.numpy()
    return float(influence.std(ddof=1) / np.sqrt(len(influence))) if len(influence) > 1 else float("nan")


def frechet_limit(fake_ND: np.ndarray, real_ND: np.ndarray, ddof: int = 0, seed: int = 0) -> Limit | None:
    """FVD for N -> infinity on both sides; None where either side has fewer samples than features.

    Below the feature width the covariance is singular, the distance no longer falls as 1/N, and a line through it
    would extrapolate nonsense. Both samples are cut into eight groups. The distances of the full set, of fourteen
    balanced halves and of the eight sets with one group left out give the value and its error.
    """
    smaller, width = min(len(fake_ND), len(real_ND)), fake_ND.shape[1]
    if smaller < max(width, 2 * NUM_GROUPS):
        return None
    sides = (
        _grouped(fake_ND, numpy_stream(seed, "eval/groups/fake")),
        _grouped(real_ND, numpy_stream(seed, "eval/groups/real")),
    )
    halves = [(chosen, _distance(sides, chosen, ddof)) for chosen in HALVES]
    value = _intercept(_distance(sides, GROUPS, ddof), [found for _, found in halves], HALF / NUM_GROUPS)
    replicates = []
    for left_out in GROUPS:
        rest = _distance(sides, [group for group in GROUPS if group != left_out], ddof)
        without = [found for chosen, found in halves if left_out not in chosen]
        replicates.append(_intercept(rest, without, HALF / (NUM_GROUPS - 1)))
    spread = np.square(np.array(replicates) - np.mean(replicates)).sum()
    error = float(np.sqrt((NUM_GROUPS - 1) / NUM_GROUPS * spread))
    half = T_95_7_DEGREES * error
    return Limit(value, error, (value - half, value + half), rough=smaller < 2 * width)


def _grouped(rows_ND: np.ndarray, rng: np.random.Generator) -> list[Statistics]:
    """Moments of eight random parts of the rows; the moments of a union are their sum."""
    shuffled = rows_ND[rng.permutation(len(rows_ND))]
    shift = rows_ND.mean(axis=0, dtype=np.float64)  # a common one, so that unions are plain sums
    return [Statistics(rows_ND.shape[1], shift).update(part) for part in np.array_split(shuffled, NUM_GROUPS)]


def _intercept(whole: float, parts: Sequence[float], share: float) -> float:
    """Where the line in 1/N through a set and the mean over parts of it, `share` of its size, meets 1/N = 0."""
    return (whole - share * float(np.mean(parts))) / (1.0 - share)


def _distance(sides: tuple[list[Statistics], list[Statistics]], chosen: Sequence[int], ddof: int) -> float:
    """The distance between the unions of the `chosen` groups of both sides."""
    a, b = (_union([groups[number] for number in chosen]) for groups in sides)
    quick = _full_rank_distance(a, b, ddof)
    return frechet_distance(a.gaussian(ddof), b.gaussian(ddof)) if quick is None else quick


def _union(groups: list[Statistics]) -> Statistics:
    union = Statistics(groups[0].dimension)
    for group in groups:
        union.merge(group)
    return union


def _full_rank_distance(a: Statistics, b: Statistics, ddof: int) -> float | None:
    """The distance by one Cholesky factor and one symmetric eigenproblem, several times cheaper; None if singular.

    With C_a = L L^T the eigenvalues of C_a C_b are those of L^T C_b L. Their square roots have half the digits of
    singular values, which an extrapolation does not need.
    """
    if min(a.count, b.count) <= a.dimension:
        return None
    own, other = (torch.from_numpy(side.covariance(ddof)) for side in (a, b))
    factor, failed = torch.linalg.cholesky_ex(own)
    if failed:
        return None
    overlap = torch.linalg.eigvalsh(factor.T @ other @ factor).clamp(min=0).sqrt().sum()
    shift = np.square(a.mean() - b.mean()).sum()
    return float(shift + torch.trace(own) + torch.trace(other) - 2.0 * overlap)
