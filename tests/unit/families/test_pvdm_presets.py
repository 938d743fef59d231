"""The presets against the paper's and the reference's numbers, without memory for the weights."""

import pytest
from pydantic import ValidationError

from hpdm_core.families.pvdm.config import PvdmModel
from hpdm_core.families.registry import load_run_config
from hpdm_core.training.source import weightless_family

MILLION = 1e6


def built(name):
    config = load_run_config(name)
    family = weightless_family(config)
    sizes = {child: sum(p.numel() for p in module.parameters()) for child, module in family.named_children()}
    return config, family, sizes


@pytest.mark.parametrize(
    ("name", "denoiser"), [("pvdm-ucf101-s", 132.2), ("pvdm-ucf101-l", 528.3), ("pvdm-sky", 528.3)]
)
def test_paper_presets_have_the_reference_sizes(name, denoiser):
    config, family, sizes = built(name)
    assert sizes["denoiser"] / MILLION == pytest.approx(denoiser, rel=1e-3)
    assert sizes["autoencoder"] / MILLION == pytest.approx(62.06, rel=1e-3)
    encoder = family.autoencoder.encoder
    projectors = sum(p.numel() for p in encoder.projectors.parameters())
    assert projectors / MILLION == pytest.approx(8.29, rel=1e-2)
    assert sum(p.numel() for p in encoder.trunk.parameters()) / MILLION == pytest.approx(26.8, rel=1e-2)
    assert sum(p.numel() for p in family.critics.frame.parameters()) / MILLION == pytest.approx(2.77, rel=1e-2)
    assert sum(p.numel() for p in family.critics.clip.parameters()) / MILLION == pytest.approx(11.06, rel=1e-2)
    cross = sum(p.numel() for unit in family.denoiser.units() for p in unit.cross.parameters())
    if denoiser > 500:
        assert cross / MILLION == pytest.approx(58.3, rel=1e-3)
    assert len(family.denoiser.units()) == 24
    assert config.parameters == sum(sizes.values())


def test_the_paper_clip_has_2048_cells():
    config, family, _ = built("pvdm-ucf101-l")
    assert config.model.planes.num_cells == 2048
    assert (family.view("ae").frames, family.view("ldm").frames) == (16, 32)


@pytest.mark.parametrize(("name", "share", "steps"), [("pvdm-ucf101-l", 0.3, (400,)), ("pvdm-sky", 0.2, (400,)),
                                                      ("pvdm-ucf101-s", 0.3, (100, 20))])  # fmt: skip
def test_paper_settings(name, share, steps):
    config = load_run_config(name)
    assert config.model.training.previous_share == share
    assert config.sample.steps == steps
    assert (config.sample.solver, config.sample.eta) == (("ddim",), 1.0)
    assert (config.train.batch_size, config.train.optimizer.lr) == (64, 1e-4)
    phases = {phase.name: phase for phase in weightless_family(config).phases()}
    assert (phases["ae"].batch_size, phases["ae_gan"].batch_size, phases["ldm"].batch_size) == (24, 24, None)
    generator, critics = phases["ae_gan"].roles
    assert (generator.optimizer.clip_norm, critics.optimizer.clip_norm) == (None, 1.0)


def test_the_mini_is_small_and_follows_the_specified_sizes():
    _, _, sizes = built("pvdm-mini")
    assert sum(sizes.values()) < 20 * MILLION
    assert sizes["autoencoder"] / MILLION == pytest.approx(8.0, rel=1e-2)
    assert sizes["denoiser"] / MILLION == pytest.approx(9.0, rel=1e-2)
    assert sizes["critics"] / MILLION == pytest.approx(0.84, rel=1e-2)


def test_the_smoke_preset_has_every_phase():
    _, family, sizes = built("pvdm-smoke")
    assert [phase.name for phase in family.phases()] == ["ae", "ae_gan", "ldm"]
    assert sum(sizes.values()) < MILLION


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": (16, 60, 64)}, "do not divide into patches of 8"),
        ({"video": (12, 64, 64)}, "multiples of 8"),
        ({"denoiser": {"width": 30}}, "does not divide into 8 heads"),
        ({"autoencoder": {"head_dim": 6}}, "multiple of 4"),
        ({"denosier": {}}, "denosier"),
    ],
)
def test_impossible_models_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        PvdmModel(**{"video": (16, 64, 64), **changes})
