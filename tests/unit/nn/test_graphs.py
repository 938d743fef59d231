"""Captured network calls against the same calls made one by one."""

import pytest
import torch
from torch import nn

from hpdm_core.nn import graphs
from hpdm_core.nn.precision import Bf16Products, autocast
from tests.support.tiny_hpdm import sample, tiny_family


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replayed_calls_give_the_same_video():
    from hpdm_core.families.hpdm.config import HpdmSample
    from hpdm_core.sampling.engine import run_plan
    from hpdm_core.sampling.stage import Request

    family = tiny_family().cuda()
    videos = []
    for replayed in (False, True, True):
        options = HpdmSample(steps=(3, 2, 2), guidance=(2.0,), graphs=replayed)
        request = Request((0, 1), (1, 2), device="cuda")
        videos.append(run_plan(family.plan(request, options), (0, 1), "cuda"))
    torch.testing.assert_close(videos[1], videos[0], atol=1e-5, rtol=0)
    assert torch.equal(videos[2], videos[1])


class CountedReplay:
    """Stands in for a capture, which needs a GPU."""

    made = 0

    def __init__(self, function, inputs):
        CountedReplay.made += 1
        self.function = function

    def __call__(self, inputs):
        return self.function(*inputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captures_serve_until_the_weights_move(monkeypatch, precision):
    monkeypatch.setattr(graphs, "Replay", CountedReplay)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)

    def captures(key="level", rows=2):
        before = CountedReplay.made
        with Bf16Products([net], precision).held(), autocast("cpu", precision):
            out = graphs.replayed(net, key, net, (torch.ones(rows, 3),))
            assert torch.equal(out, net(torch.ones(rows, 3)))
        return CountedReplay.made - before

    assert [captures(), captures(), captures("other"), captures(rows=4), captures()] == [1, 0, 1, 1, 0]
    net.load_state_dict({name: tensor + 1 for name, tensor in net.state_dict().items()})
    assert captures() == 0  # a graph reads the new numbers where the old ones lay
    net.load_state_dict({name: tensor.clone() for name, tensor in net.state_dict().items()}, assign=True)
    assert captures() == (precision == "fp32")


def test_graphs_change_nothing_on_a_cpu():
    family = tiny_family()
    options = {"steps": (2, 1, 1)}
    assert torch.equal(sample(family, [0], [1], graphs=True, **options), sample(family, [0], [1], **options))
