"""How far an FVD can be trusted: a 95 % interval at the protocol's N, and the limit N -> infinity.

FVD of N clips is biased upwards by about c/N. The interval is for the protocol's number itself, that is for what other
draws of as many clips would give; resampling with replacement would add bias of its own, so the standard error
comes from the distance's influence function (the infinitesimal jackknife). The limit removes the 1/N bias by
comparing the full sets with halves drawn without replacement; its error is a delete-a-group jackknife.

Shapes: N samples, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hpdm_core.metrics.frechet import Gaussian, Statistics, frechet_distance
from hpdm_core.rng import numpy_stream

NORMAL_95 = 1.96
T_95_9_DEGREES = 2.262
NUM_GROUPS = 10


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
    """FVD extrapolated to infinitely many clips, its standard error and 95 % interval (t with 9 degrees).

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
        whitened = centred @ (own.factor / scale).T
        influence -= np.square(whitened @ left.numpy()) @ singular.numpy()
    return float(influence.std(ddof=1) / np.sqrt(len(influence))) if len(influence) > 1 else float("nan")


def frechet_limit(fake_ND: np.ndarray, real_ND: np.ndarray, ddof: int = 0, seed: int = 0) -> Limit | None:
    """FVD for N -> infinity on both sides; None where either side has fewer samples than features.

    Below the feature width the covariance is singular, the distance no longer falls as 1/N, and a line through it
    would extrapolate nonsense.
    """
    smaller, width = min(len(fake_ND), len(real_ND)), fake_ND.shape[1]
    if smaller < max(width, 2 * NUM_GROUPS):
        return None
    groups = [
        _grouped(rows, ddof, numpy_stream(seed, f"eval/groups/{side}"))
        for side, rows in (("fake", fake_ND), ("real", real_ND))
    ]
    everything = list(range(NUM_GROUPS))
    value = _richardson(groups, everything, ddof, halvings=NUM_GROUPS)
    replicates = np.array(
        [_richardson(groups, [g for g in everything if g != left_out], ddof, halvings=3) for left_out in everything]
    )
    spread = np.square(replicates - replicates.mean()).sum()
    error = float(np.sqrt((NUM_GROUPS - 1) / NUM_GROUPS * spread))
    half = T_95_9_DEGREES * error
    return Limit(value, error, (value - half, value + half), rough=smaller < 2 * width)


def _grouped(rows_ND: np.ndarray, ddof: int, rng: np.random.Generator) -> list[Statistics]:
    """Moments of ten random parts of the rows; the moments of a union are their sum."""
    shuffled = rows_ND[rng.permutation(len(rows_ND))]
    shift = rows_ND.mean(axis=0, dtype=np.float64)  # a common one, so that unions are plain sums
    return [Statistics(rows_ND.shape[1], shift).update(part) for part in np.array_split(shuffled, NUM_GROUPS)]


def _richardson(groups: list[list[Statistics]], chosen: list[int], ddof: int, halvings: int) -> float:
    """The intercept of the line in 1/N through all of `chosen` and the mean over some halves of it."""
    whole = _distance(groups, chosen, ddof)
    size = len(chosen) // 2
    turns = [round(i * len(chosen) / halvings) for i in range(halvings)]
    halves = [_distance(groups, (chosen[t:] + chosen[:t])[:size], ddof) for t in turns]
    share = size / len(chosen)
    return (whole - share * float(np.mean(halves))) / (1.0 - share)


def _distance(groups: list[list[Statistics]], chosen: list[int], ddof: int) -> float:
    unions = []
    for side in groups:
        union = Statistics(side[0].dimension)
        for index in chosen:
            union.merge(side[index])
        unions.append(union)
    quick = _full_rank_distance(unions[0], unions[1], ddof)
    return frechet_distance(unions[0].gaussian(ddof), unions[1].gaussian(ddof)) if quick is None else quick


def _full_rank_distance(a: Statistics, b: Statistics, ddof: int) -> float | None:
    """The distance by Cholesky factors and one symmetric eigenproblem, several times cheaper; None if singular.

    Squaring the singular values costs half the digits, which an extrapolation does not need.
    """
    if min(a.count, b.count) <= a.dimension:
        return None
    covariances = [torch.from_numpy(side.covariance(ddof)) for side in (a, b)]
    (first, failed_a), (second, failed_b) = (torch.linalg.cholesky_ex(c) for c in covariances)
    if failed_a or failed_b:
        return None
    product = first.T @ second
    overlap = torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
    shift = np.square(a.mean() - b.mean()).sum()
    return float(shift + sum(torch.trace(c) for c in covariances) - 2.0 * overlap)
