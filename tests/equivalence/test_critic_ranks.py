"""The adversarial phase on two ranks: the critics' batch norm sees the rows of both, which make the step of one."""

import pytest
import torch
import torch.distributed as dist

from hpdm_core.nn.batch_norm import BatchNorm
from hpdm_core.rng import BatchStreams
from hpdm_core.training.distributed import World, distribute
from tests.support import tiny_pvdm

RANKS = 2
ROLES = ("generator", "critics")
POSITIONS = list(range(6))
SHAPE = (6, 3, 2, 5, 4)


def norm_result(rows):
    """Output of a layer and gradients of the mean of a loss, for these of six rows that differ widely."""
    generator = torch.Generator().manual_seed(0)
    x, shift, weights = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    layer = BatchNorm(SHAPE[1])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
    x = (x * torch.tensor([1.0, 3.0, 0.2, 7.0, 2.0, 0.5]).view(6, 1, 1, 1, 1) + shift).requires_grad_()
    y = layer(x[rows])
    (y.square() * weights[rows]).mean().backward()
    return {"y": y.detach(), "x": x.grad[rows], "weight": layer.weight.grad, "bias": layer.bias.grad}


def step_result(world):
    """Per role, this rank's loss and the gradients that the ranks share, as training computes them."""
    found, mine = {}, POSITIONS[world.rank :: world.size]
    for role in ROLES:
        family = tiny_pvdm.tiny_family(critic={"width": 4, "layers": 2}).train()
        module = distribute(family, world, "ddp", len(ROLES))  # its gradients are shared for as long as it lives
        losses = module(role, tiny_pvdm.random_batch(mine), BatchStreams(0, mine))
        losses.total.backward()
        grads = {name: p.grad.clone() for name, p in family.named_parameters() if p.grad is not None}
        found[role] = {"loss": world.mean(losses.total.detach().clone()), **grads}
    return found


def on_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = norm_result(slice(rank, None, RANKS)), step_result(World(torch.device("cpu"), rank, RANKS))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_outputs_and_gradients_of_the_norm_are_those_of_all_rows(ranks):
    whole, parts = norm_result(slice(None)), [norm for norm, _ in ranks]
    for rank, part in enumerate(parts):
        rows = slice(rank, None, RANKS)
        torch.testing.assert_close(part["y"], whole["y"][rows])
        torch.testing.assert_close(part["x"] / RANKS, whole["x"][rows])  # of the ranks' summed means
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(part[name] for part in parts) / RANKS, whole[name])


@pytest.mark.parametrize("role", ROLES)
def test_the_step_of_two_ranks_is_that_of_one(ranks, role):
    whole = step_result(World(torch.device("cpu")))[role]
    assert any(name.startswith("critics") for name in whole) == (role == "critics")
    for _, steps in ranks:
        assert steps[role].keys() == whole.keys()
        for name, tensor in whole.items():
            # The norm takes away the biases before it: what comes back to them is rounding.
            torch.testing.assert_close(steps[role][name], tensor, rtol=1e-3, atol=5e-5, msg=name)
