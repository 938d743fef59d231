"""Captured network calls against the same calls made one by one."""

import pytest
import torch
from torch import nn

from hpdm_core.families.hpdm import branch
from hpdm_core.families.mdm import joint
from hpdm_core.families.pvdm import clips
from hpdm_core.nn import graphs
from hpdm_core.nn.precision import Bf16Products, autocast
from hpdm_core.sampling.engine import run_plan
from hpdm_core.sampling.stage import Request
from tests.support import tiny_hpdm, tiny_mdm, tiny_pvdm


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize(("tiny", "steps"), [(tiny_hpdm, (3, 2, 2)), (tiny_pvdm, (3,)), (tiny_mdm, (3,))])
def test_replayed_calls_give_the_same_video(tiny, steps):
    family = tiny.tiny_family().cuda()
    videos = []
    for replayed in (False, True, True):
        options = family.sample_section(steps=steps, guidance=(2.0,), graphs=replayed)
        request = Request((0, 1), (1, 2), device="cuda")
        videos.append(run_plan(family.plan(request, options), (0, 1), "cuda"))
    torch.testing.assert_close(videos[1], videos[0], atol=1e-5, rtol=0)
    assert torch.equal(videos[2], videos[1])


class CountedReplay:
    """Stands in for a capture, which needs a GPU."""

    made = 0

    def __init__(self, function, inputs, pool=None):
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


@pytest.mark.parametrize(("tiny", "steps"), [(tiny_hpdm, (2, 1, 1)), (tiny_pvdm, (2,)), (tiny_mdm, (2,))])
def test_graphs_change_nothing_on_a_cpu(tiny, steps):
    family = tiny.tiny_family()
    captured = tiny.sample(family, [0], [1], graphs=True, steps=steps)
    assert torch.equal(captured, tiny.sample(family, [0], [1], steps=steps))


@pytest.mark.parametrize(("tiny", "steps"), [(tiny_hpdm, (2, 1, 1)), (tiny_pvdm, (2,)), (tiny_mdm, (2,))])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_call_that_overwrites_the_last_result_spoils_nothing(monkeypatch, tiny, steps, guidance):
    """A graph's result lies where the one before lay: chunk after chunk, condition after condition."""
    places = {}

    def into_one_place(module, key, function, inputs, **_):
        result = function(*inputs)
        parts = [result] if torch.is_tensor(result) else [part for part in result if torch.is_tensor(part)]
        place = places.setdefault((module, key, *(part.shape for part in parts)), [part.clone() for part in parts])
        for kept, part in zip(place, parts, strict=True):
            kept.copy_(part)
        if torch.is_tensor(result):
            return place[0]
        kept = iter(place)
        return type(result)(next(kept) if torch.is_tensor(part) else part for part in result)

    family = tiny.tiny_family()
    options = {"steps": steps, "guidance": (guidance,), "chunk": 1}
    wanted = tiny.sample(family, [0, 1], [1, 2], **options)
    for site in (branch, clips, joint):
        monkeypatch.setattr(site, "called", into_one_place)
    assert torch.equal(tiny.sample(family, [0, 1], [1, 2], **options), wanted)


def test_a_rehearsal_keeps_one_place_for_each_input_of_each_graph(monkeypatch):
    made = []
    monkeypatch.setattr(
        graphs, "_places", lambda inputs, make: made.append([t if t is None else t.shape for t in inputs])
    )
    net = nn.Linear(3, 3)

    def call(rows, *, captured=True):
        return graphs.called(net, "level", lambda x, mask: net(x), (torch.ones(rows, 3), None), graphs=captured)

    call(2)
    with graphs.rehearsed_places():
        outputs = [call(2), call(2), call(4), call(5, captured=False)]
    call(2)
    assert made == [[(2, 3), None], [(4, 3), None]]
    assert torch.equal(outputs[0], net(torch.ones(2, 3)))
