"""Multi-head attention over PyTorch's fused kernel.

The reference precision is fp32. Under bf16 autocast the products run in bf16 while the kernel keeps its
softmax statistics in fp32. fp32 attention is half of an fp32 step on a GPU, so `attention_dtype` can
run this one kernel in bf16 while everything else stays as it is, or the whole layer with its projections.

Shapes: B batch, R pictures (a multiple of B), N queries, M keys, D width, S width of a source, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.nn.normed import normed_linear

_core_dtype: torch.dtype | None = None
_project_alike = False


@contextmanager
def attention_dtype(dtype: torch.dtype | None, *, projections: bool = False) -> Iterator[None]:
    """Within the block, run the attention kernel in `dtype` (None: in its inputs' own), `projections` too if asked."""
    global _core_dtype, _project_alike
    before, (_core_dtype, _project_alike) = (_core_dtype, _project_alike), (dtype, projections)
    try:
        yield
    finally:
        _core_dtype, _project_alike = before


def _layer_precision(x: Tensor) -> AbstractContextManager[object]:
    """What a whole attention layer runs under."""
    if _core_dtype is None or not _project_alike:
        return nullcontext()
    return torch.autocast(x.device.type, dtype=_core_dtype)


class SelfAttention(nn.Module):
    """Attention of x [B, N, D] to itself; one fused projection makes queries, keys and values."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = _fit_head(dim, head_dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """[B, N, D] to [B, N, D]. norm: of x, applied first."""
        with _layer_precision(x_BND):
            q, k, v = _projected(norm, self.qkv, x_BND).chunk(3, dim=-1)
            return self.out(attend(q, k, v, self.head_dim))


class CrossAttention(nn.Module):
    """Attention of x [B, N, D] to a source [B, M, S]; inner width min(D, S) unless given (RIN)."""

    def __init__(self, dim: int, source_dim: int, head_dim: int, inner_dim: int | None = None) -> None:
        super().__init__()
        inner = inner_dim or min(dim, source_dim)
        self.head_dim = _fit_head(inner, head_dim)
        self.query = nn.Linear(dim, inner)
        self.key_value = nn.Linear(source_dim, 2 * inner)
        self.out = nn.Linear(inner, dim)

    def forward(
        self,
        x_BND: Tensor,
        source_BMS: Tensor,
        mask_BM: Tensor | None = None,
        *,
        norm: nn.LayerNorm | None = None,
        source_norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """[B, N, D] to [B, N, D]. mask: False where a source token is padding, which nobody then reads.

        norm, source_norm: of x and of the source, applied first.
        """
        with _layer_precision(x_BND):
            k, v = _projected(source_norm, self.key_value, source_BMS).chunk(2, dim=-1)
            return self.out(attend(_projected(norm, self.query, x_BND), k, v, self.head_dim, mask_BM))


def _projected(norm: nn.LayerNorm | None, linear: nn.Linear, x: Tensor) -> Tensor:
    return linear(x) if norm is None else normed_linear(norm, linear, x)


class ConditionRead(nn.Module):
    """What an attention over pictures reads of condition tokens, by its own queries; added to its result (MDM)."""

    def __init__(self, condition_dim: int, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = layer_norm(condition_dim)
        self.key_value = nn.Linear(condition_dim, 2 * dim)

    def forward(self, q_RND: Tensor, tokens_BMS: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """[R, N, D]; each row of the tokens serves R / B pictures in a row. mask: False where a token is padding."""
        pictures = len(q_RND) // len(tokens_BMS)
        source = self.key_value(self.norm(tokens_BMS)).to(q_RND.dtype)
        k, v = source.repeat_interleave(pictures, dim=0).chunk(2, dim=-1)
        mask = None if mask_BM is None else mask_BM.repeat_interleave(pictures, dim=0)
        return attend(q_RND, k, v, self.head_dim, mask)


def attend(q_BND: Tensor, k_BMD: Tensor, v_BMD: Tensor, head_dim: int, mask_BM: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v with heads of `head_dim` over the keys that `mask_BM` allows, [B, N, D]."""
    q, k, v = (t.unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (q_BND, k_BMD, v_BMD))
    core = _core_dtype or q.dtype
    allowed = None if mask_BM is None else mask_BM[:, None, None, :]
    out = F.scaled_dot_product_attention(q.to(core), k.to(core), v.to(core), attn_mask=allowed)
    return out.transpose(1, 2).flatten(2).to(q.dtype)


def _fit_head(dim: int, head_dim: int) -> int:
    """The head width, no larger than the whole; ValueError where heads do not divide it."""
    head = min(head_dim, dim)
    if dim % head:
        raise ValueError(f"a width of {dim} does not divide into heads of {head}")
    return head


def feed_forward(dim: int, ratio: float) -> nn.Sequential:
    """Linear, GELU (tanh form), Linear, widened by `ratio`."""
    hidden = int(dim * ratio)
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with the epsilon used throughout."""
    return nn.LayerNorm(dim, eps=1e-6)


def init_linear_(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer below `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
