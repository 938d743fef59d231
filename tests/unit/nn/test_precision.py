"""Weights held in bf16 while sampling are what autocast makes of them."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpdm_core.config.load import plain_config
from hpdm_core.families.generate import iterate_samples
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.weights import LoadedModel, WeightsHeader
from hpdm_core.nn.precision import Bf16Products, autocast
from tests.support.tiny_hpdm import sample, tiny_family


def test_held_weights_give_what_autocast_gives_and_are_put_back():
    family = tiny_family().requires_grad_(False)
    before = {name: p.clone() for name, p in family.named_parameters()}
    with autocast("cpu", "bf16"):
        cast = sample(family, [0], [1], steps=(2, 1, 1))
        with Bf16Products(family.compile_units(), "bf16").held():
            assert family.denoiser.blocks[0].rin.read.query.weight.dtype == torch.bfloat16
            assert family.denoiser.stem.position.dtype == torch.float32
            held = sample(family, [0], [1], steps=(2, 1, 1))
    assert torch.equal(held, cast)
    after = dict(family.named_parameters())
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == torch.float32 for name, tensor in before.items()
    )


def test_weights_held_again_lie_where_they_lay_and_are_those_of_now():
    layer = nn.Linear(2, 2).requires_grad_(False)

    def place() -> int:
        with Bf16Products([layer], "bf16").held():
            assert torch.equal(layer.weight, own.bfloat16())
            return layer.weight.data_ptr()

    own = layer.weight
    first = place()
    in_between = torch.empty(4, dtype=torch.bfloat16)  # would take the place if it were given back
    with torch.no_grad():
        own.mul_(2)
    assert place() == first != in_between.data_ptr()


def test_nothing_is_touched_in_training_or_in_another_precision():
    layer = nn.Linear(2, 2)
    with Bf16Products([layer], "bf16").held():
        assert layer.weight.dtype == torch.float32
    with Bf16Products([layer.requires_grad_(False)], "tf32").held():
        assert layer.weight.dtype == torch.float32


def test_two_half_read_streams_of_samples_leave_the_model_as_it_is():
    """A consumer may stop, or read two streams in turn: between videos the weights are the model's own."""
    config = load_run_config("hpdm-smoke", ("model.condition={kind: none}",))
    family = build_family(config).eval().requires_grad_(False)
    model = LoadedModel(family, config, WeightsHeader(plain_config(config)), Path("none"), "")
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    options = {"precision": "bf16", "steps": [1], "level": 0, "device": "cpu"}
    first, second = (iterate_samples(model, seeds, **options) for seeds in ((0, 1), (1, 2)))
    next(first)
    assert all(tensor.dtype == before[name].dtype for name, tensor in family.state_dict().items())
    a = next(second).video
    b = next(first).video
    assert np.array_equal(a, b)
    first.close()
    second.close()
    after = family.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
