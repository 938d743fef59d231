"""Shared layers against plain formulas."""

import math

import pytest
import torch

from hpdm_core.nn.attention import CrossAttention, SelfAttention, attend, attention_dtype
from hpdm_core.nn.embeddings import ScalarEmbedding, place_sinusoids, sinusoids


def test_attention_is_softmax_of_scaled_products_per_head():
    q, k, v = torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    found = attend(q, k, v, head_dim=4)
    for head in (slice(0, 4), slice(4, 8)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(4)).softmax(-1)
        torch.testing.assert_close(found[..., head], weights @ v[..., head], atol=1e-5, rtol=1e-5)


def test_attention_dtype_runs_the_kernel_low_and_returns_the_inputs_dtype():
    layer, x = SelfAttention(16, 8), torch.randn(2, 6, 16)
    exact = layer(x)
    with attention_dtype(torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, atol=0.02, rtol=0.05)
    assert torch.equal(layer(x), exact)


def test_attention_dtype_may_cover_the_projections_and_leaves_the_rest_alone():
    layer, x = SelfAttention(16, 8), torch.randn(2, 6, 16)
    with attention_dtype(torch.bfloat16, projections=True):
        low = layer(x)
        assert layer.out(x).dtype == torch.float32
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), atol=0.03, rtol=0.05)


def test_cross_attention_takes_the_narrower_width_inside():
    layer = CrossAttention(16, 8, head_dim=4)
    assert layer.query.out_features == 8
    assert layer(torch.randn(2, 3, 16), torch.randn(2, 5, 8)).shape == (2, 3, 16)
    with pytest.raises(ValueError, match="heads of 3"):
        CrossAttention(16, 8, head_dim=3)


def test_sinusoids_have_unit_variance_and_tell_values_apart():
    values = torch.linspace(-2, 2, 4001)
    found = sinusoids(values, 64)
    assert found.shape == (4001, 64)
    assert found[:, 16:32].square().mean().item() == pytest.approx(1.0, abs=0.05)
    assert (found[0] - found[1]).abs().max() > 0.1
    assert torch.equal(sinusoids(torch.zeros(1), 8)[0, :4], torch.zeros(4))
    assert ScalarEmbedding(12)(values[:3]).shape == (3, 12)


def test_masked_keys_are_not_read():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 8, generator=generator) for n in (3, 5, 5))
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    out = attend(q, k, v, 4, mask)
    torch.testing.assert_close(out[0], attend(q[:1], k[:1, :2], v[:1, :2], 4)[0])
    torch.testing.assert_close(out[1], attend(q[1:], k[1:], v[1:], 4)[0])
    changed = v.clone()
    changed[0, 2:] = 1e6
    assert torch.equal(out, attend(q, k, changed, 4, mask))


def test_places_of_a_grid_differ_and_near_ones_are_alike():
    table = place_sinusoids((2, 4, 6), 64)
    assert table.shape == (48, 64)
    assert table[:, 60:].eq(0).all()  # what three equal shares leave over
    assert table[:, :60].square().mean() == pytest.approx(1.0, abs=0.2)
    apart = torch.cdist(table, table)
    assert apart[~torch.eye(48, dtype=bool)].min() > 1.0
    row = apart[0, :6]  # along the last axis from its first place
    assert row.argsort().tolist()[:2] == [0, 1]
