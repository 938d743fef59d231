"""Captured network calls against the same calls made one by one."""

import pytest
import torch

from tests.support.tiny_hpdm import sample, tiny_family


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replayed_calls_give_the_same_video():
    from hpdm_core.families.hpdm.config import HpdmSample
    from hpdm_core.sampling.engine import run_plan
    from hpdm_core.sampling.stage import Request

    family = tiny_family().cuda()
    videos = []
    for graphs in (False, True, True):
        options = HpdmSample(steps=(3, 2, 2), guidance=(2.0,), graphs=graphs)
        request = Request((0, 1), (1, 2), device="cuda")
        videos.append(run_plan(family.plan(request, options), (0, 1), "cuda"))
    torch.testing.assert_close(videos[1], videos[0], atol=1e-5, rtol=0)
    assert torch.equal(videos[2], videos[1])


def test_graphs_change_nothing_on_a_cpu():
    family = tiny_family()
    options = {"steps": (2, 1, 1)}
    assert torch.equal(sample(family, [0], [1], graphs=True, **options), sample(family, [0], [1], **options))
