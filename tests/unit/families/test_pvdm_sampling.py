import numpy as np
import pytest
import torch
from torch import nn

from hpdm_core.errors import ConfigError
from hpdm_core.families.pvdm.config import PvdmSample
from hpdm_core.sampling.solvers import SOLVERS, ddim
from hpdm_core.sampling.stage import Request
from hpdm_core.video import to_uint8
from tests.support import tiny_pvdm
from tests.support.tiny_pvdm import VIDEO


@pytest.fixture(scope="module")
def family():
    return tiny_pvdm.tiny_family()


class Oracle(nn.Module):
    """The denoiser of data that is one point: its noise, from the state of unit variance and the noise level."""

    def __init__(self, family, clean_1CN):
        super().__init__()
        self.table, self.clean, self.previous = family.schedule.sigmas(), clean_1CN, []

    def forward(self, z, previous, noise, class_term=None):
        self.previous.append(previous.clone())
        sigma = self.table[(noise * 1000).round().long()].view(-1, 1, 1)
        scale = (1 + sigma**2).rsqrt()
        return ((z - scale * self.clean) / (scale * sigma)).float()

    def units(self):
        return []


def with_oracle(seed=0, **changes):
    family = tiny_pvdm.tiny_family(seed, **changes)
    family.denoiser = Oracle(family, tiny_pvdm.random_latents(family, 1, seed=5) * 0.9)
    return family


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@torch.no_grad()
def test_every_solver_recovers_the_data_of_an_exact_denoiser(solver):
    family = with_oracle()
    video = tiny_pvdm.sample(family, (3, 4), request={"frames": 8}, solver=(solver,), steps=(6,))
    one = family.autoencoder.decoder(family.denoiser.clean)
    torch.testing.assert_close(video, one.repeat(2, 1, 2, 1, 1), rtol=1e-3, atol=1e-3)


def test_ddim_with_eta_one_is_ancestral_sampling(family):
    """The posterior q(z_s | z_t, x) of every neighbouring pair of times: DDPM's mean and variance."""
    abar = np.array(family.schedule.abar)
    sigmas = family.schedule.grid(1000)
    assert torch.equal(sigmas[:-1], family.schedule.sigmas().flip(0))
    for t in (1, 10, 500, 999):
        s, beta = t - 1, 1 - abar[t] / abar[t - 1]
        pair = torch.stack([family.schedule.sigmas()[t], family.schedule.sigmas()[s]])

        def step(clean, u, eps, pair=pair):
            state = ddim(
                lambda _state, _sigma: {"z": clean}, {"z": u}, pair, lambda _step: {"z": eps}, lambda *_: None, eta=1.0
            )
            return state["z"].item()

        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        # The solver's state is z / sqrt(abar).
        spread = step(zero, zero, one) * abar[s] ** 0.5
        assert spread**2 == pytest.approx(beta * (1 - abar[s]) / (1 - abar[t]), rel=1e-9)
        of_clean = step(one, zero, zero) * abar[s] ** 0.5
        assert of_clean == pytest.approx(abar[s] ** 0.5 * beta / (1 - abar[t]), rel=1e-9)
        of_state = step(zero, one, zero) * (abar[s] / abar[t]) ** 0.5
        assert of_state == pytest.approx((1 - beta) ** 0.5 * (1 - abar[s]) / (1 - abar[t]), rel=1e-9)


def test_a_video_depends_on_its_seed_alone(family):
    together = tiny_pvdm.sample(family, (0, 1, 2, 7, 5), (0, 1, 2, 3, 0), request={"frames": 8})
    for row, (seed, label) in enumerate(zip((0, 1, 2, 7, 5), (0, 1, 2, 3, 0), strict=True)):
        assert torch.equal(tiny_pvdm.sample(family, (seed,), (label,), request={"frames": 8})[0], together[row])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("clips", [1, 2, 3])
def test_any_number_of_whole_clips(family, clips):
    video = tiny_pvdm.sample(family, (0, 1, 2), request={"frames": clips * VIDEO[0]})
    pixels = to_uint8(video)
    assert pixels.shape == (3, clips * VIDEO[0], *VIDEO[1:], 3)
    assert pixels.dtype == torch.uint8
    # The first clip does not know how many follow.
    assert torch.equal(video[:, :, : VIDEO[0]], tiny_pvdm.sample(family, (0, 1, 2)))


@torch.no_grad()
def test_the_next_clip_is_given_the_encoded_frames_or_the_raw_latent():
    for reuse in (False, True):
        family = with_oracle()
        video = tiny_pvdm.sample(family, (3,), request={"frames": 12}, chunk=1, reuse_latent=reuse)
        previous = [rows[0] for rows in family.denoiser.previous]
        # Three steps for the first clip, two for each later one.
        assert len(previous) == 3 + 2 + 2
        assert not any(row.any() for row in previous[:3])
        encoded = family.autoencoder.encoder(video[:, :, : VIDEO[0]])[0]
        expected = family.denoiser.clean[0] if reuse else encoded
        for row in previous[3:5]:
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(encoded, family.denoiser.clean[0], atol=1e-2)


def test_latents_are_held_to_the_range_of_the_encoder():
    family = with_oracle()
    family.denoiser.clean = family.denoiser.clean * 3
    seen = []
    family.autoencoder.decoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    tiny_pvdm.sample(family, (0,))
    assert seen[0].abs().max() == 1
    tiny_pvdm.sample(family, (0,), clip=False)
    assert seen[1].abs().max() > 1.5


def test_guidance_one_is_the_conditional_model_and_zero_the_null_class(family):
    def videos(labels, weight):
        return tiny_pvdm.sample(family, (0, 1), labels, guidance=(weight,))

    plain = videos((1, 2), 1.0)
    torch.testing.assert_close(videos((1, 2), 0.0), videos(None, 1.0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, videos((1, 2), 0.0), atol=1e-4)
    assert not torch.allclose(plain, videos((1, 2), 3.0), atol=1e-4)


def test_an_unconditional_model_samples(family):
    family = tiny_pvdm.tiny_family(condition={"kind": "none"})
    assert tiny_pvdm.sample(family, (0,), guidance=(2.0,)).shape == (1, 3, *VIDEO)


def test_the_outline_is_what_happens():
    family, calls = tiny_pvdm.tiny_family(), []
    family.denoiser.register_forward_hook(lambda *_: calls.append(1))
    request, options = Request((0,), (1,), frames=12), PvdmSample(steps=(3, 2), guidance=(1.0, 2.0), chunk=2)
    outline = family.outline(request, options)
    assert (outline.frames, outline.size) == (12, VIDEO[1:])
    assert [(s.name, s.frames, s.steps, s.calls) for s in outline.stages] == [
        ("clip0", 4, 3, 3),
        ("clip1", 4, 2, 2),
        ("clip2", 4, 2, 2),
    ]
    units = len(family.denoiser.units())
    assert [s.block_evals for s in outline.stages] == [3 * units, 4 * units, 4 * units]
    progress = []
    tiny_pvdm.sample(
        family, (0,), (1,), request={"frames": 12}, guidance=(1.0, 2.0), on_progress=lambda p: progress.append(p.calls)
    )
    assert len(calls) == sum(s.block_evals for s in outline.stages) // units
    assert sum(progress) == sum(s.calls for s in outline.stages)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"frames": 6}, "whole clips of 4 frames, and 6 is no multiple"),
        ({"frames": 2}, "whole clips of 4 frames"),
        ({"size": (32, 32)}, "frames of 16x24, not 32x32"),
    ],
)
def test_impossible_requests_say_what_is_possible(family, wanted, message):
    with pytest.raises(ConfigError, match=message):
        family.outline(Request((0,), **wanted), PvdmSample())


def test_an_unknown_solver_is_refused_before_anything_runs(family):
    with pytest.raises(ConfigError, match="unknown solver"):
        family.outline(Request((0,)), PvdmSample(solver=("magic",)))
