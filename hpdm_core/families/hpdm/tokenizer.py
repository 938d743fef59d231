"""Patches to tokens and back by plain cutting; the learned part is one linear layer on each side.

Shapes: R rows, C channels, T H W frames and pixels, N tokens, E = t * h * w * C numbers of one token.
"""

from __future__ import annotations

from torch import Tensor

from hpdm_core.config.schema import Extent


def tokenize(x_RCTHW: Tensor, token: Extent) -> Tensor:
    """Cut patches into flattened tokens, [R, N, t * h * w * C]."""
    rows, channels, *sides = x_RCTHW.shape
    (t, h, w), (n_t, n_h, n_w) = token, (s // p for s, p in zip(sides, token, strict=True))
    x = x_RCTHW.reshape(rows, channels, n_t, t, n_h, h, n_w, w).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return x.reshape(rows, n_t * n_h * n_w, t * h * w * channels)


def detokenize(tokens_RNE: Tensor, patch: Extent, token: Extent) -> Tensor:
    """The inverse of `tokenize`."""
    (t, h, w), (n_t, n_h, n_w) = token, (s // p for s, p in zip(patch, token, strict=True))
    x = tokens_RNE.reshape(len(tokens_RNE), n_t, n_h, n_w, t, h, w, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(len(tokens_RNE), -1, *patch)
