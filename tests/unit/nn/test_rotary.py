import math

import pytest
import torch

from hpdm_core.nn import rotary
from hpdm_core.nn.rotary import HeadAttention, grid_angles, line_angles, rotate

CPU = torch.device("cpu")


def products(angles, width):
    """Query-key products of one constant query and key, turned to every position."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(width, generator=generator).expand(1, len(angles), width) for _ in range(2))
    return (rotate(q, angles) @ rotate(k, angles).transpose(1, 2))[0]


def test_products_on_a_line_depend_on_distance_alone():
    table = products(line_angles(7, 8, CPU), 8)
    for distance in range(-6, 7):
        diagonal = torch.diagonal(table, distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert torch.diagonal(table, 1)[0] != pytest.approx(torch.diagonal(table, 2)[0].item(), abs=1e-3)


def test_products_on_a_grid_depend_on_row_and_column_distance():
    height, width = 3, 4
    table = products(grid_angles(height, width, 16, CPU), 16).reshape(height, width, height, width)
    torch.testing.assert_close(table[0, 0, 1, 2], table[1, 1, 2, 3], rtol=1e-4, atol=1e-5)
    assert abs(table[0, 0, 1, 0] - table[0, 0, 0, 1]) > 1e-3


def test_grid_coordinates_span_the_frame_and_rates_span_the_band():
    angles = grid_angles(5, 3, 8, CPU).reshape(5, 3, 2, 2)
    torch.testing.assert_close(angles[0, 0], -angles[-1, -1])
    torch.testing.assert_close(angles[-1, 0, 0], math.pi * torch.tensor([1.0, 5.0]))


@pytest.mark.parametrize("width", [8, 24])
def test_rotation_keeps_lengths_and_the_first_position(width):
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))
    turned = rotate(x, line_angles(5, 8, CPU))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, 0], x[:, 0])
    assert not torch.allclose(turned[:, 1], x[:, 1], atol=1e-2)


def test_rotation_keeps_the_type():
    x = torch.randn(1, 5, 8).bfloat16()
    assert rotate(x, line_angles(5, 8, CPU)).dtype == torch.bfloat16


def test_attention_has_its_own_inner_width_and_sees_order_only_through_angles():
    torch.manual_seed(0)
    layer = HeadAttention(6, heads=2, head_dim=8)
    assert layer.qkv.weight.shape == (48, 6)
    assert layer.qkv.bias is None
    x, order = torch.randn(2, 5, 6), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    angles = line_angles(5, 8, CPU)
    assert not torch.allclose(layer(x[:, order], angles), layer(x, angles)[:, order], atol=1e-4)


def test_batches_beyond_the_kernels_limit_are_split(monkeypatch):
    layer, x = HeadAttention(6, heads=2, head_dim=8), torch.randn(7, 5, 6)
    whole = layer(x)
    seen, run = [], rotary.attend
    monkeypatch.setattr(rotary, "MAX_ROWS", 3)
    monkeypatch.setattr(rotary, "attend", lambda q, *rest: seen.append(len(q)) or run(q, *rest))
    torch.testing.assert_close(layer(x), whole)
    assert seen == [3, 3, 1]
