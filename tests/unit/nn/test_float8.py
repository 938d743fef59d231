"""Float8 products against bf16 ones: near, per row, and only where they were asked for."""

import pytest
import torch
from torch import nn

from hpdm_core.nn import float8
from hpdm_core.nn.float8 import Float8Linear, use_float8


@pytest.fixture
def layers(monkeypatch):
    monkeypatch.setattr(float8, "SMALLEST", 64)
    found = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.Linear(64, 16))
    use_float8([found])
    return found


def run(layers, x):
    x = x.clone().requires_grad_()
    layers.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = layers(x)
    output.float().square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in layers.parameters())]


def test_only_large_layers_are_replaced_and_names_stay(layers):
    assert [type(layer) for layer in layers] == [Float8Linear, nn.GELU, Float8Linear, nn.Linear]
    assert list(layers.state_dict())[:2] == ["0.weight", "0.bias"]


def test_outputs_and_gradients_are_near_those_of_bf16(layers):
    x = torch.randn(3, 32, 64)
    low = run(layers, x)
    for layer in layers:
        if isinstance(layer, Float8Linear):
            layer.__class__ = nn.Linear
    for found, exact in zip(low, run(layers, x), strict=True):
        assert 0 < (found - exact).float().norm() < 0.1 * exact.float().norm()


def test_a_row_does_not_depend_on_the_scale_of_another(layers):
    x = torch.randn(2, 16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        alone, beside = layers[0](x)[0], layers[0](torch.stack([x[0], 1e4 * x[1]]))[0]
    assert torch.equal(alone, beside)


def test_without_autocast_the_layer_is_the_plain_one(layers):
    x = torch.randn(5, 64)
    assert torch.equal(layers[0](x), nn.functional.linear(x, layers[0].weight, layers[0].bias))
