"""The training loss: its value at zero output, its parts, its randomness, and every switch trains and samples."""

import pytest
import torch
from pydantic import ValidationError

from hpdm_core.rng import BatchStreams
from tests.support.tiny_hpdm import random_batch, sample, tiny_family, tiny_model

SWITCHES = [
    {},
    {"fusion": "shallow"},
    {"fusion": "none"},
    {"fusion": "none", "coordinates": False},
    {"coordinates": False},
    {"context_gradient": False},
    {"self_conditioning": 0.9},
    {"fusion_init": "identity"},
    {"position_init": "sinusoids"},
    {"loss_weighting": "output"},
    {"prediction": "v"},
    {"levels_per_block": (3, 3)},
    {"condition": {"kind": "none"}},
    {"video": (2, 16, 32)},
    {"video": (2, 8, 8), "levels_per_block": (1, 1)},
]


def losses_of(family, positions=(0, 1, 2, 3), seed=0):
    return family.losses("denoiser", random_batch(family, positions), BatchStreams(seed, list(positions)))


def losses_at_zero_output(family):
    """The loss of a network that says 0, and each level's clean patches, noise and noise levels, in float64."""
    with torch.no_grad():
        family.denoiser.head.detokenize.weight.zero_()
    positions = list(range(6))
    batch, streams = random_batch(family, positions), BatchStreams(3, positions)
    sigmas = family.schedule.draw(streams.uniform("sigma", 3)).double()
    levels = []
    for level in range(3):
        x = batch.videos[f"level{level}"].double()
        eps = streams.normal(f"noise/level{level}", x.shape[1:]).double()
        levels.append((x, eps, sigmas[:, level, None, None, None, None]))
    return family.losses("denoiser", batch, streams), levels


@pytest.mark.parametrize("weighting", ["edm", "output"])
def test_loss_at_zero_output_is_the_weighted_power_of_the_target(weighting):
    """With F = 0 each level's loss is the mean of w(sigma) F*², computed here from the spec's formulas.

    `edm` has the spec's w; with `output` it is one, so that all noise levels count alike.
    """
    found, levels = losses_at_zero_output(tiny_family(sigma_data=0.5, loss_weighting=weighting))
    for level, (x, eps, sigma) in enumerate(levels):
        s, d = 4.0 * 2**level, 0.5
        v = (d**2 * eps - sigma * x) / (d * (sigma**2 + d**2).sqrt())
        edm = (sigma**2 + d**2) ** 2 / (sigma**2 + d**2 / s) ** 2
        weight = edm if weighting == "edm" else torch.ones_like(edm)
        expected = (weight * v**2).mean().item()
        assert found.parts[f"level{level}"].item() == pytest.approx(expected, rel=1e-4)
    assert found.total.item() == pytest.approx(sum(p.item() for p in found.parts.values()), rel=1e-6)


def test_v_is_that_of_each_levels_own_signal_and_noise():
    family = tiny_family(prediction="v", loss_weighting="output", input_scale=2.0)
    found, levels = losses_at_zero_output(family)
    for level, (x, eps, sigma) in enumerate(levels):
        ratio = 2.0 * 2**level * sigma  # noise to signal, in pixels
        expected = ((eps - ratio * x).square() / (1 + ratio**2)).mean().item()
        assert found.parts[f"level{level}"].item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValidationError, match="sigma_data of 1"):
        tiny_model(prediction="v", sigma_data=0.5)


def test_terms_are_attached_and_add_up_with_level_weights():
    family = tiny_family(level_weights=(1.0, 0.5, 0.25))
    found = losses_of(family)
    assert list(found.terms) == ["level0", "level1", "level2"]
    assert all(term.requires_grad for term in found.terms.values())
    assert not any(part.requires_grad for part in found.parts.values())
    torch.testing.assert_close(sum(found.terms.values()), found.total)
    for name, factor in zip(found.terms, (1.0, 0.5, 0.25), strict=True):
        torch.testing.assert_close(found.terms[name].detach(), factor * found.parts[name])


def test_noise_levels_are_independent_between_levels():
    streams = BatchStreams(0, list(range(4000)))
    sigma = tiny_family().schedule.draw(streams.uniform("sigma", 3)).log()
    correlation = torch.corrcoef(sigma.T) - torch.eye(3)
    assert correlation.abs().max() < 0.06


def test_a_batch_split_into_parts_has_the_same_loss():
    family = tiny_family()
    whole = losses_of(family, (0, 1, 2, 3)).total.item()
    halves = [losses_of(family, positions).total.item() for positions in ((0, 1), (2, 3))]
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-5)
    assert losses_of(family).total.item() == whole
    assert losses_of(family, seed=1).total.item() != whole


@pytest.mark.parametrize("changes", SWITCHES)
def test_every_switch_trains_and_samples(changes):
    family = tiny_family(**changes)
    total = losses_of(family).total
    total.backward()
    idle = {name for name, p in family.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    # Latents of the last pass are not fed anywhere; all else learns.
    assert idle == set()
    labels = None if family.labels is None else [1]
    frames, height, width = family.pyramid.extent(min(1, family.pyramid.num_levels - 1))
    video = sample(family, [0], labels, request={"frames": frames, "size": (height, width)}, steps=(1,))
    assert video.shape == (1, 3, frames, height, width)
    assert torch.isfinite(video).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels_per_block": (1, 2)}, "must end with 3"),
        ({"levels_per_block": (2, 1, 3)}, "must not decrease"),
        ({"levels_per_block": ()}, "levels_per_block"),
        ({"token": (1, 3, 2)}, "does not divide into tokens"),
        ({"token": (0, 2, 2)}, "at least 1"),
        ({"video": (8, 24, 32)}, "power of two"),
        ({"level_weights": (1.0,)}, "level_weights"),
        ({"head_dim": 7}, "heads"),
        ({"sigma_min": 90.0}, "sigma_min"),
    ],
)
def test_inconsistent_sections_are_refused_by_name(changes, message):
    with pytest.raises(ValidationError, match=message):
        tiny_model(**changes)
