"""Joint sampling: exact with an oracle, the same for every seed whatever is made beside it, honest about sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpdm_core.errors import ConfigError
from hpdm_core.families.mdm.config import MdmSample
from hpdm_core.families.mdm.family import MdmFamily
from hpdm_core.sampling.engine import run_plan, run_stage
from hpdm_core.sampling.noise import Noise
from hpdm_core.sampling.stage import Request
from tests.support.tiny_mdm import EXTENTS, IMAGE, NEST, enliven, random_batch, sample, tiny_family, tiny_model

SOLVERS = ("ancestral", "ddim", "euler", "heun", "dpmpp_2m")


class Oracle:
    """A network that knows the clip: its v is the true one at every noise level."""

    def __init__(self, family, clips):
        self.family, self.clips = family, clips

    def __call__(self, z, noise_B, condition_BMS):
        sigmas = self.family.schedule.sigmas()
        table = torch.arange(len(sigmas), dtype=torch.float64) / len(sigmas)
        log_sigma = torch.from_numpy(np.interp(noise_B.double().numpy(), table.numpy(), sigmas.log().numpy()))
        sigma, outputs = log_sigma.exp().view(-1, 1, 1, 1, 1), []
        for x, state, form in zip(self.clips, z, self.family.levels, strict=False):
            ratio = form.scale * sigma
            alpha, beta = (1 + ratio**2).rsqrt(), ratio * (1 + ratio**2).rsqrt()
            eps = (state.double() - alpha * x[: len(state)]) / beta
            outputs.append((alpha * eps - beta * x[: len(state)]).float())
        return outputs


def oracle_family(**changes):
    family = tiny_family(**changes)
    clips = list(random_batch([3]).videos.values())
    trained_levels, blocks = family.denoiser.trained_levels, family.denoiser.blocks
    oracle = Oracle(family, clips)
    oracle.trained_levels, oracle.blocks = trained_levels, blocks
    del family.denoiser
    family.denoiser = oracle
    return family, clips


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_with_an_oracle_every_solver_recovers_the_clip_at_every_resolution(solver, power):
    family, clips = oracle_family(shift_power=power)
    for level, clip in enumerate(clips):
        video = sample(family, (5,), (0,), solver=(solver,), steps=(8,), level=level)
        assert torch.allclose(video, clip, atol=2e-3)


def test_one_step_is_enough_for_an_oracle():
    family, clips = oracle_family()
    assert torch.allclose(sample(family, (5,), (0,), steps=(1,)), clips[2], atol=2e-3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_video_does_not_depend_on_the_batch_it_is_made_in(guidance):
    family = tiny_family()
    options = {"chunk": 2, "guidance": (guidance,)}
    together = sample(family, (0, 1, 2, 3, 4), (0, 1, 2, 3, 0), **options)
    for seeds, labels in (((4,), (0,)), ((2, 3), (2, 3)), ((1, 4, 0), (1, 0, 0))):
        rows = torch.stack([together[seed] for seed in seeds])
        assert torch.equal(sample(family, seeds, labels, **options), rows)


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_null_one():
    family = tiny_family()
    free = sample(family, (0, 1))
    given = sample(family, (0, 1), (2, 2))
    assert not torch.allclose(given, free, atol=1e-2)
    assert torch.equal(sample(family, (0, 1), (2, 2), guidance=(1.0,)), given)
    assert torch.allclose(sample(family, (0, 1), (2, 2), guidance=(0.0,)), free, atol=1e-5)
    pushed = sample(family, (0, 1), (2, 2), guidance=(4.0,))
    assert not torch.allclose(pushed, given, atol=1e-2)


def test_an_unconditional_model_samples_without_labels():
    family = tiny_family(condition={"kind": "none"})
    assert sample(family, (0, 1)).shape == (2, 3, *EXTENTS[2])


def test_all_levels_are_returned_from_one_joint_process():
    family = tiny_family()
    joint = [sample(family, (0,), (1,), level=level) for level in range(3)]
    assert [tuple(v.shape[2:]) for v in joint] == list(EXTENTS)
    request = Request((0,), (1,))
    stage = next(family.plan(request, MdmSample(steps=(3,))))
    state = run_stage(stage, Noise((0,), "cpu"))
    for k, form in enumerate(family.levels):
        assert torch.equal(state[f"level{k}"] * form.scale, joint[k])
    alone = sample(family, (0,), (1,), level=1, joint=False)
    assert alone.shape == joint[1].shape
    assert not torch.equal(alone, joint[1])


def test_leaving_outer_levels_away_is_the_smaller_nest():
    nest, inside = tiny_family(seed=3), tiny_family(seed=4, levels=NEST[:2])
    nest.load_inner(inside.state_dict())
    assert torch.equal(sample(nest, (7,), (1,), level=1, joint=False), sample(inside, (7,), (1,)))


@pytest.mark.parametrize(
    ("request_", "extent"),
    [
        ({}, EXTENTS[2]),
        ({"frames": 1}, EXTENTS[0]),
        ({"frames": 4}, EXTENTS[2]),
        ({"size": (8, 4)}, EXTENTS[1]),
        ({"frames": 1, "size": (8, 4)}, EXTENTS[0]),
    ],
)
def test_the_largest_level_that_fits_the_request_is_made(request_, extent):
    family = tiny_family()
    outline = family.outline(Request((0,), (0,), **request_), MdmSample())
    assert (outline.frames, *outline.size) == extent
    assert tuple(sample(family, (0,), (0,), request=request_).shape[2:]) == extent


def test_what_the_nest_does_not_hold_is_refused_with_the_sizes_it_makes():
    family = tiny_family()
    for request in ({"frames": 3}, {"size": (32, 16)}, {"frames": 1, "size": (16, 8)}):
        with pytest.raises(ConfigError, match="does not make") as caught:
            family.outline(Request((0,), (0,), **request), MdmSample())
        assert "1x8x4, 4x8x4, 4x16x8" in caught.value.hint
    with pytest.raises(ConfigError, match="not one of the 3 trained levels"):
        family.outline(Request((0,), (0,)), MdmSample(level=3))
    with pytest.raises(ConfigError, match="is not a class"):
        family.outline(Request((0,), (4,)), MdmSample())


def test_a_model_whose_outer_levels_are_untrained_makes_what_it_has_learned():
    family = tiny_family(lively=False)
    enliven(family.denoiser.levels[0])
    outline = family.outline(Request((0,), (0,)), MdmSample())
    assert (outline.frames, *outline.size) == EXTENTS[0]
    assert sample(family, (0,), (0,)).shape == (1, 3, *EXTENTS[0])
    with pytest.raises(ConfigError, match="does not make"):
        family.outline(Request((0,), (0,), frames=4), MdmSample())


def test_the_outline_counts_the_calls_that_are_made():
    family = tiny_family()
    options = MdmSample(steps=(5,), solver=("heun",), guidance=(2.0,), chunk=3)
    stage = family.outline(Request((0,), (0,)), options).stages[0]
    calls = []
    forward = family.denoiser.forward
    family.denoiser.forward = lambda *args: calls.append(1) or forward(*args)
    run_plan(family.plan(Request((0,), (0,)), options), (0,), "cpu")
    assert stage.calls == 9
    assert len(calls) == 18
    assert stage.block_evals == 18 * sum(1 for _ in family.denoiser.blocks())


def test_estimates_are_held_within_the_range_by_the_threshold_asked_for():
    family = tiny_family()
    videos = {name: sample(family, (0,), (0,), threshold=name) for name in ("none", "clip", "dynamic")}
    assert videos["none"].abs().max() > 1
    assert videos["clip"].abs().max() <= 1
    assert videos["dynamic"].abs().max() <= 1
    assert not torch.equal(videos["clip"], videos["dynamic"])


def test_an_image_nest_makes_videos_of_one_frame():
    larger = {"size": (16, 8), "channels": (8, 8), "blocks": (1, 1)}
    family = tiny_family(levels=(IMAGE, larger))
    assert family.config.scales == pytest.approx((1.0, 2.0))
    assert [p.name for p in family.phases()] == ["low", "full"]
    assert sample(family, (0,), (0,)).shape == (1, 3, 1, 16, 8)


def test_building_without_memory_gives_an_outline():
    with torch.device("meta"):
        family = MdmFamily(tiny_model())
    assert family.outline(Request((0,), (0,)), MdmSample()).size == (16, 8)
