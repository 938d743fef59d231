"""Weights held in bf16 while sampling are what autocast makes of them."""

import torch
from torch import nn

from hpdm_core.nn.precision import autocast, products_in_bf16
from tests.support.tiny_hpdm import sample, tiny_family


def test_held_weights_give_what_autocast_gives_and_are_put_back():
    family = tiny_family().requires_grad_(False)
    before = {name: p.clone() for name, p in family.named_parameters()}
    with autocast("cpu", "bf16"):
        cast = sample(family, [0], [1], steps=(2, 1, 1))
        with products_in_bf16(family.compile_units(), "bf16"):
            assert family.denoiser.blocks[0].rin.read.query.weight.dtype == torch.bfloat16
            assert family.denoiser.stem.position.dtype == torch.float32
            held = sample(family, [0], [1], steps=(2, 1, 1))
    assert torch.equal(held, cast)
    after = dict(family.named_parameters())
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == torch.float32 for name, tensor in before.items()
    )


def test_nothing_is_touched_in_training_or_in_another_precision():
    layer = nn.Linear(2, 2)
    with products_in_bf16([layer], "bf16"):
        assert layer.weight.dtype == torch.float32
    with products_in_bf16([layer.requires_grad_(False)], "tf32"):
        assert layer.weight.dtype == torch.float32
