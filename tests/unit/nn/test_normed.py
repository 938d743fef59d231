"""A norm folded into the linear layer behind it is the same map with the same gradients."""

import pytest
import torch
from torch import nn

from hpdm_core.nn.normed import folded_linear, normed_linear, normed_mlp


def pair(bias=True):
    norm, linear = nn.LayerNorm(16, eps=1e-6), nn.Linear(16, 24, bias=bias)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, linear


@pytest.mark.parametrize("bias", [True, False])
def test_folded_values_and_gradients_are_those_of_the_two_layers(bias):
    norm, linear = pair(bias)
    x = torch.randn(3, 5, 16, requires_grad=True)
    inputs = [x, *norm.parameters(), *linear.parameters()]
    weight = torch.randn(3, 5, 24)
    apart, folded = linear(norm(x)), folded_linear(norm, linear, x)
    torch.testing.assert_close(folded, apart, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad((apart * weight).sum(), inputs)
    found = torch.autograd.grad((folded * weight).sum(), inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_compiled_training_folds_and_everything_else_does_not():
    norm, linear = pair()
    x = torch.randn(4, 16)
    compiled = torch.compile(lambda x: normed_linear(norm, linear, x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), folded_linear(norm, linear, x))
    assert torch.equal(normed_linear(norm, linear, x), linear(norm(x)))
    with torch.no_grad():
        assert torch.equal(compiled(x), linear(norm(x)))


def test_mlp_is_norm_then_layers():
    norm, linear = pair()
    mlp = nn.Sequential(linear, nn.GELU(), nn.Linear(24, 16))
    x = torch.randn(2, 16)
    assert torch.equal(normed_mlp(norm, mlp, x), mlp(norm(x)))
