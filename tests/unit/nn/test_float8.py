"""MLPs in float8 against the same in bf16: near, whatever the size of gradients, and only where asked for."""

import copy

import pytest
import torch
from torch import nn

from hpdm_core.nn import float8
from hpdm_core.nn.attention import feed_forward
from hpdm_core.nn.float8 import Float8Mlp, use_float8
from hpdm_core.nn.normed import normed_mlp

DIM = 64


@pytest.fixture(autouse=True)
def narrow_is_wide_enough(monkeypatch):
    monkeypatch.setattr(float8, "SMALLEST", DIM)


@pytest.fixture
def plain():
    """A norm and an MLP, none of whose parameters are at a special value."""
    layers = nn.ModuleList([nn.LayerNorm(DIM, eps=1e-6), feed_forward(DIM, 2)])
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layers


@pytest.fixture
def low(plain):
    layers = copy.deepcopy(plain)
    assert use_float8([layers]) == 1
    return layers


def off(found, exact):
    return float((found - exact).float().norm() / exact.float().norm())


def gradients(layers, x, weight, run=normed_mlp):
    """The output, and the gradients of its weighted sum."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = run(layers[0], layers[1], x)
    found = torch.autograd.grad((output.float() * weight).sum(), [x, *layers.parameters()])
    return [output.detach().float(), *found]


def test_only_wide_mlps_are_replaced_and_names_stay():
    others = nn.ModuleList(
        [feed_forward(DIM // 2, 2), feed_forward(DIM, 1.1), nn.Sequential(nn.Linear(DIM, DIM), nn.SiLU()), nn.GELU()]
    )
    assert use_float8([others]) == 0
    assert not any(isinstance(module, Float8Mlp) for module in others.modules())
    others.append(feed_forward(DIM, 2))
    names = list(others.state_dict())
    assert use_float8([others]) == 1
    assert list(others.state_dict()) == names


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e9])
def test_outputs_and_gradients_are_near_those_of_bf16(plain, low, size):
    """Gradients of all sizes: 1e-9 is below what float8 can hold, 1e9 above."""
    x, weight = torch.randn(3, 200, DIM), size * torch.randn(3, 200, DIM)
    found, exact = gradients(low, x, weight), gradients(plain, x, weight)
    assert all(off(a, b) < 0.15 for a, b in zip(found, exact, strict=True))
    assert all(off(a, b) > 0.01 for a, b in zip(found[:2], exact[:2], strict=True))  # it was in float8


def test_rows_of_small_gradients_beside_large_ones_keep_theirs(plain, low):
    """As with videos at other noise levels: one scale for all, a million times too large for half of the rows."""
    x, weight = torch.randn(2, 200, DIM), torch.randn(2, 200, DIM)
    weight[1] *= 1e-6
    found, exact = gradients(low, x, weight)[1], gradients(plain, x, weight)[1]
    assert off(found[1], exact[1]) < 0.2


def test_a_gradient_far_above_the_sample_is_cut_and_not_lost(low):
    """The sample sees one row in 61; what is too large for its scale becomes the largest number, not inf or NaN."""
    x, weight = torch.randn(1, 120, DIM), torch.randn(1, 120, DIM)
    weight[0, 1] *= 1e6
    assert all(value.isfinite().all() for value in gradients(low, x, weight))


@pytest.mark.parametrize("row", [0, 1])
def test_the_guard_sees_what_is_not_finite(low, row):
    """In the sample, where gradients in float8 show it too, or beside it, where those of weights do."""
    x, weight = torch.randn(1, 120, DIM), torch.randn(1, 120, DIM)
    weight[0, row, 0] = torch.inf
    _, of_x, *_, of_down, _ = gradients(low, x, weight)
    assert bool(of_x.isfinite().all()) == (row == 1)
    assert not of_down.isfinite().all()


def test_without_autocast_and_in_sampling_it_is_the_plain_mlp(plain, low):
    x = torch.randn(5, DIM)
    assert torch.equal(normed_mlp(*low, x), normed_mlp(*plain, x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normed_mlp(*low, x), normed_mlp(*plain, x))


def test_compiled_it_is_the_same(low):
    x, weight = torch.randn(2, 70, DIM), torch.randn(2, 70, DIM)
    compiled = torch.compile(normed_mlp, backend="aot_eager", fullgraph=True)
    found, expected = gradients(low, x, weight, compiled), gradients(low, x, weight)
    assert all(off(a, b) < 0.02 for a, b in zip(found, expected, strict=True))
