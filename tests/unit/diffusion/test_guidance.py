"""Guidance as arithmetic, and what keeps strong guidance in range."""

import torch

from hpdm_core.diffusion.guidance import dynamic_threshold, guide


def test_guidance_goes_from_one_estimate_to_the_other_and_beyond():
    told, free = torch.tensor([2.0]), torch.tensor([0.5])
    assert guide(told, free, 1.0) == told
    assert guide(told, free, 0.0) == free
    assert guide(told, free, 3.0) == 5.0


def test_dynamic_threshold_scales_only_rows_that_leave_the_range():
    calm = torch.linspace(-0.9, 0.9, 100)
    wild = torch.linspace(-4.0, 4.0, 100)
    out = dynamic_threshold(torch.stack([calm, wild]).view(2, 1, 10, 10), 0.9).flatten(1)
    assert torch.equal(out[0], calm)
    assert out[1].abs().max() == 1.0
    # a tenth of the values was clipped, the others keep their proportions
    assert int((out[1].abs() == 1.0).sum()) in (10, 11, 12)
    inside = out[1].abs() < 1.0
    ratio = wild[inside] / out[1][inside]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
