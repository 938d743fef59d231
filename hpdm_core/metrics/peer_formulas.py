"""The Fréchet distance as other projects compute it, to put our exact value beside the number they would print.

* `float32_svd`: VideoGPT, DIGAN and PVDM: float32 covariance, matrix square roots by SVD. About 1 % high at full rank.
* `tfgan`: the original FVD: float64, square root by SVD with small singular values left alone.
* `sqrtm_distance`: StyleGAN-V and fvd-comparison: scipy's Schur method; for cross-checks, no protocol needs it.

Shapes: N samples, D feature width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpdm_core.metrics.frechet import frechet_from_features
from hpdm_core.metrics.protocol import Formula

_SMALL = 1.0e-10


def distance_by(formula: Formula, fake_ND: np.ndarray, real_ND: np.ndarray, ddof: int) -> float:
    """The distance of two feature tables by the protocol's formula."""
    if formula == "exact":
        return frechet_from_features(fake_ND, real_ND, ddof)
    dtype = torch.float32 if formula == "float32_svd" else torch.float64
    return _svd_distance(torch.from_numpy(fake_ND).to(dtype), torch.from_numpy(real_ND).to(dtype), ddof)


def _svd_distance(fake_ND: Tensor, real_ND: Tensor, ddof: int) -> float:
    (fake_mean, fake_cov), (real_mean, real_cov) = _moments(fake_ND, ddof), _moments(real_ND, ddof)
    root = _square_root(fake_cov)
    overlap = torch.trace(_square_root(root @ (real_cov @ root)))
    return float(torch.trace(fake_cov + real_cov) - 2.0 * overlap + (fake_mean - real_mean).square().sum())


def _moments(rows_ND: Tensor, ddof: int) -> tuple[Tensor, Tensor]:
    mean = rows_ND.mean(dim=0)
    centred = rows_ND - mean
    return mean, centred.T @ centred / (len(rows_ND) - ddof)


def _square_root(matrix: Tensor) -> Tensor:
    """U sqrt(S) V^T, singular values below 1e-10 kept as they are."""
    u, s, vh = torch.linalg.svd(matrix)
    return (u * torch.where(s < _SMALL, s, s.sqrt())) @ vh


def sqrtm_distance(fake_ND: np.ndarray, real_ND: np.ndarray, ddof: int) -> float:
    """|mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)) with scipy's `sqrtm`, its imaginary part dropped."""
    from scipy import linalg

    fake, real = np.asarray(fake_ND, dtype=np.float64), np.asarray(real_ND, dtype=np.float64)
    a, b = np.cov(fake, rowvar=False, ddof=ddof), np.cov(real, rowvar=False, ddof=ddof)
    root = np.real(linalg.sqrtm(a @ b))
    shift = np.square(fake.mean(axis=0) - real.mean(axis=0)).sum()
    return float(shift + np.trace(a + b - 2.0 * root))
