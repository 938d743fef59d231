"""Learning rates, decay groups, LAMB against timm's and Muon against torch's."""

import copy
import math

import pytest
import torch
from torch import nn

from hpdm_core.config.schema import OptimizerSection
from hpdm_core.errors import ConfigError
from hpdm_core.families.base import Role
from hpdm_core.training.lamb import Lamb
from hpdm_core.training.muon import Muon, orthogonal
from hpdm_core.training.optim import (
    RoleOptimizer,
    build_optimizer,
    learning_rate,
    trained_parameters,
    undecayed_names,
)
from tests.support import tiny_pvdm
from tests.support.toy import ToyFamily, ToyModel


def test_the_rate_warms_up_linearly_and_follows_a_cosine():
    section = OptimizerSection(lr=2.0, warmup_steps=4, schedule="cosine", final_lr_fraction=0.1)
    assert [learning_rate(section, s, 104) for s in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(section, 4, 104) == pytest.approx(2.0)
    assert learning_rate(section, 54, 104) == pytest.approx(2.0 * 0.55)
    assert learning_rate(section, 104, 104) == pytest.approx(0.2)
    assert learning_rate(section, 500, 104) == pytest.approx(0.2)
    rates = [learning_rate(section, s, 104) for s in range(4, 104)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_rate_stays():
    section = OptimizerSection(lr=1.0, warmup_steps=0, schedule="constant")
    assert {learning_rate(section, s, 10) for s in range(30)} == {1.0}


def test_vectors_embeddings_and_tagged_parameters_do_not_decay():
    family = ToyFamily(ToyModel())
    family.net.outer.weight.no_weight_decay = True
    spared = undecayed_names(family)
    assert "net.table.weight" in spared
    assert "net.outer.weight" in spared
    assert "net.blocks.0.norm.weight" in spared
    assert "net.inner.bias" in spared
    assert "net.inner.weight" not in spared
    assert "net.blocks.1.fc.weight" not in spared


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_decay_reaches_only_the_others(name):
    """With zero gradients a step is the decay alone."""
    family = ToyFamily(ToyModel())
    role = RoleOptimizer(
        family, Role("net", ("net",)), OptimizerSection(name=name, lr=0.1, weight_decay=0.5, clip_norm=None)
    )
    before = {name: p.detach().clone() for name, p in role.params.items()}
    for p in role.params.values():
        p.grad = torch.zeros_like(p)
    role.step(0.1, torch.tensor(1.0), torch.tensor(0.0))
    spared = undecayed_names(family)
    for key, p in role.params.items():
        if key in spared:
            assert torch.equal(p, before[key]), key
        else:
            assert p.norm() < before[key].norm(), key


def test_a_role_that_trains_nothing_is_an_error():
    family = ToyFamily(ToyModel())
    family.add_module("empty", nn.Identity())
    with pytest.raises(ConfigError, match="trains no parameters"):
        trained_parameters(family, Role("x", ("empty",)))


def test_a_role_names_submodules_or_the_whole_family():
    family = ToyFamily(ToyModel())
    whole = trained_parameters(family, Role("all", ("",)))
    assert whole.keys() == dict(family.named_parameters()).keys()
    assert trained_parameters(family, Role("c", ("critic",))).keys() == {"critic.weight", "critic.bias"}


def test_lamb_matches_timm():
    """Twelve steps on matrices, a vector and a zero matrix, with and without trust ratio."""
    timm_optim = pytest.importorskip("timm.optim")
    torch.manual_seed(0)
    start = [torch.randn(5, 7), torch.randn(9), torch.zeros(3, 4), torch.randn(2, 3, 4) * 1e-3]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))

    def groups(params):
        return [
            {"params": [params[0], params[2], params[3]], "weight_decay": 0.02},
            {"params": [params[1]], "weight_decay": 0.0},
        ]

    mine = groups(ours)
    mine[1]["adapt"] = False
    a = Lamb(mine, lr=0.03, betas=(0.9, 0.99), eps=1e-6)
    b = timm_optim.Lamb(groups(theirs), lr=0.03, betas=(0.9, 0.99), eps=1e-6, max_grad_norm=None)
    for step in range(12):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) * (1 + step)
            q.grad = p.grad.clone()
        a.step()
        b.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-7)


def test_lamb_moves_a_matrix_in_proportion_to_its_norm():
    """Without decay, the first step of a matrix has length lr * |w| whatever the gradient's scale."""
    for scale in (1e-4, 1.0, 1e4):
        p = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
        before = p.detach().clone()
        p.grad = scale * torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
        Lamb([p], lr=0.01, eps=1e-12, weight_decay=0.0).step()
        assert (p - before).norm().item() == pytest.approx(0.01 * before.norm().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_found_inf_makes_a_step_a_no_op(name):
    """Weights, moments and step counts stay bit for bit, and the next step is as if nothing had been."""
    section = OptimizerSection(name=name, lr=0.1, weight_decay=0.3)
    finals = []
    for with_bad_step in (True, False):
        torch.manual_seed(0)
        params = {"w": nn.Parameter(torch.randn(4, 4)), "b": nn.Parameter(torch.randn(4))}
        optimizer = build_optimizer(params, {"b"}, section)
        for step in range(3):
            if with_bad_step and step == 1:
                before = {k: p.detach().clone() for k, p in params.items()}
                for p in params.values():
                    p.grad = torch.full_like(p, math.nan)
                optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
                optimizer.step()
                assert all(torch.equal(before[k], p) for k, p in params.items())
            for p in params.values():
                p.grad = torch.full_like(p, 0.1 * (step + 1))
            optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(0.0)
            optimizer.step()
        finals.append({k: p.detach().clone() for k, p in params.items()})
        assert all(s["step"].item() == 3 for s in optimizer.state.values() if "step" in s)
    assert all(torch.equal(finals[0][k], finals[1][k]) for k in finals[0])


def test_orthogonal_matrices_have_singular_values_near_one():
    """Of tall, wide and square matrices, whatever their scale; a matrix of zeros stays."""
    generator = torch.Generator().manual_seed(0)
    for shape, scale in (((4, 24, 8), 1e-3), ((4, 8, 24), 1e3), ((2, 16, 16), 1.0)):
        values = torch.linalg.svdvals(orthogonal(scale * torch.randn(shape, generator=generator)))
        assert values.max() < 1.3
        assert values.median() > 0.65
    assert not orthogonal(torch.zeros(2, 3, 5)).any()


def test_muon_matches_torch():
    """Six steps of tall, wide and square matrices; torch's products are in bf16, which bounds the agreement."""
    torch.manual_seed(0)
    start = [torch.randn(24, 8), torch.randn(24, 8), torch.randn(8, 24), torch.randn(16, 16)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    a = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.02)
    b = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for _ in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, t in zip(ours, theirs, start, strict=True):
        moved = (q - t).norm()
        assert moved > 0.1
        assert (p - q).norm() < 0.02 * moved


def test_muon_gives_matrices_orthogonal_steps_and_the_rest_adams():
    """Embeddings and biases go as with AdamW; two matrices of a shape do not see each other."""
    family = ToyFamily(ToyModel())
    roles = {
        name: RoleOptimizer(copy.deepcopy(family), Role("net", ("net",)), OptimizerSection(name=name, clip_norm=None))
        for name in ("adamw", "muon")
    }
    for role in roles.values():
        for i, p in enumerate(role.params.values()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        role.step(0.1, torch.tensor(1.0), torch.tensor(0.0))
    spared, sizes = undecayed_names(family), {}
    for key, p in roles["muon"].params.items():
        if key in spared:
            torch.testing.assert_close(p, roles["adamw"].params[key])
        else:
            step = (p - family.get_parameter(key) * (1 - 0.1 * 0.01)).detach()
            sizes[key] = torch.linalg.svdvals(step / (0.1 * 0.2 * max(p.shape) ** 0.5))
    assert sizes
    assert all(0.4 < values.median() < 1.3 for values in sizes.values())


def test_muon_takes_a_kernel_as_the_matrix_that_a_convolution_is():
    torch.manual_seed(0)
    kernels = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(5, 2, 3, 3, 3))
    matrices = [nn.Parameter(k.detach().flatten(1).clone()) for k in kernels]
    a, b = Muon(kernels, lr=0.1), Muon(matrices, lr=0.1)
    for _ in range(3):
        for kernel, matrix in zip(kernels, matrices, strict=True):
            kernel.grad = torch.randn_like(kernel)
            matrix.grad = kernel.grad.flatten(1)
        a.step()
        b.step()
    for kernel, matrix in zip(kernels, matrices, strict=True):
        torch.testing.assert_close(kernel.flatten(1), matrix)
    family = tiny_pvdm.tiny_family()
    role = RoleOptimizer(family, Role("denoiser", ("denoiser",)), OptimizerSection(name="muon"))
    moved = {id(p) for group in role.optimizer.param_groups if group["matrix"] for p in group["params"]}
    kernels = [m.weight for m in family.denoiser.modules() if isinstance(m, nn.Conv2d)]
    assert kernels
    assert all(id(kernel) in moved for kernel in kernels)


def test_gradients_are_clipped_once_to_the_global_norm():
    family = ToyFamily(ToyModel())
    role = RoleOptimizer(family, Role("net", ("net",)), OptimizerSection(name="adamw", clip_norm=0.5))
    for p in role.params.values():
        p.grad = torch.ones_like(p)
    norm = role.gradient_norm()
    count = sum(p.numel() for p in role.params.values())
    assert norm.item() == pytest.approx(math.sqrt(count))
    role.step(1e-3, norm, torch.tensor(0.0))
    assert role.gradient_norm().item() == pytest.approx(0.5, rel=1e-4)
