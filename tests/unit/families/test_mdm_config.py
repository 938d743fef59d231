"""The matryoshka config: geometry that must fit, phases, shares of rows, scales of the shift."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from hpdm_core.config.load import load_config, parse_config
from hpdm_core.errors import ConfigError
from hpdm_core.families.mdm.config import MdmModel, MdmSample, NestLevel
from hpdm_core.families.mdm.family import MdmFamily
from tests.support.tiny_mdm import IMAGE, MIDDLE, NEST, OUTER, tiny_model


def sections(name):
    return MdmModel, MdmSample


def built(preset, *overrides):
    config = load_config(preset, overrides, sections)
    with torch.device("meta"):
        return config, MdmFamily(config.model)


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_an_unknown_key_is_an_error_and_not_dropped():
    raw = {
        "family": "mdm", "data": {"dataset": "x"}, "train": {"max_steps": 1}, "sample": {},
        "model": {"levels": [{"size": [8, 8], "channels": [8], "blocks": [1]}], "multi_res_weights": "16:4:1"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="multi_res_weights"):
        parse_config(raw, sections, "test")
    raw["model"].pop("multi_res_weights")
    assert parse_config(raw, sections, "test").model.shift_power == 1.0


def test_the_network_inside_must_have_the_size_of_the_bottleneck_around_it():
    assert NestLevel(**MIDDLE).bottleneck == (1, 8, 4)
    assert NestLevel(**OUTER).bottleneck == (4, 8, 4)
    with pytest.raises(ValidationError, match=r"level 1 shrinks to \[4, 8, 4\]; level 0 inside it is \[1, 8, 4\]"):
        tiny_model(levels=(IMAGE, OUTER))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1,)}, "blocks has 1 entries for 2 stages"),
        ({"size": (7, 4)}, "cannot be halved"),
        ({"channels": (8, 12)}, "does not divide into heads"),
        ({"attention": (1,)}, "attention has 1 entries"),
        ({"size": (6, 6), "time_attention": (0, 1)}, r"even size, and stage 1 has \[3, 3\]"),
    ],
)
def test_a_level_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ValidationError, match=message):
        NestLevel(**{**IMAGE, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level_weights": (1.0,)}, "level_weights has 1 entries for 3 levels"),
        ({"row_mix": (1.0, 1.0, 0.0)}, "its last entry is 0"),
        ({"phases": ({"name": "low", "levels": 1},)}, "must end with all"),
        ({"phases": ({"name": "a", "levels": 3}, {"name": "b", "levels": 1})}, "must not fall"),
        ({"phases": ({"name": "a", "levels": 1}, {"name": "a", "levels": 3})}, "the same name"),
    ],
)
def test_lists_must_agree_with_the_levels(change, message):
    with pytest.raises(ValidationError, match=message):
        tiny_model(**change)


def test_scales_are_sides_over_the_innermost_side_with_frames_laid_out_as_one_picture():
    config, _ = built("mdm-ucf101")
    assert config.model.scales == pytest.approx((1.0, 4.0, 16.0))
    config, _ = built("mdm-image-1024")
    assert config.model.scales == pytest.approx((1.0, 4.0, 16.0))


def test_phases_add_one_level_at_a_time_unless_listed():
    names = [(p.name, p.levels) for p in tiny_model().phase_list()]
    assert names == [("low", 1), ("mid", 2), ("full", 3)]
    assert [p.name for p in tiny_model(levels=NEST[:1]).phase_list()] == ["full"]
    listed = tiny_model(phases=({"name": "all", "levels": 3, "steps": 7},))
    family = MdmFamily(listed)
    assert [(p.name, p.steps, p.batch_size) for p in family.phases()] == [("all", 7, None)]


def test_row_shares_count_the_rows_that_go_at_least_so_deep():
    model = tiny_model(row_mix=(1.0, 1.0, 2.0))
    assert model.row_shares(3) == (1.0, 0.75, 0.5)
    assert model.row_shares(2) == (1.0, 0.75)
    assert tiny_model().row_shares(3) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("preset", ["mdm-image-256", "mdm-image-1024", "mdm-ucf101"])
def test_presets_state_their_number_of_parameters(preset):
    config, family = built(preset)
    assert sum(p.numel() for p in family.parameters()) == config.parameters


def test_the_image_models_have_the_published_sizes():
    """Published counts include an embedding of the original image size per level, 1.31 M each (spec §2.3)."""
    size_embedding = (256 * 1024 + 1024 + 1024 * 1024 + 1024) / 1e6
    _, family = built("mdm-image-1024")
    inner, middle, outer = (millions(level) + size_embedding for level in family.denoiser.levels)
    assert inner + millions(family.denoiser.condition) == pytest.approx(461.4, abs=0.05)
    assert middle == pytest.approx(15.25, abs=0.01)
    assert outer == pytest.approx(4.36, abs=0.005)


def test_the_mini_has_the_sizes_of_the_reference_classes_and_outer_networks_are_cheap():
    _, family = built("mdm-mini", "model.condition.kind=none")
    counts = [millions(level) for level in family.denoiser.levels]
    assert counts == pytest.approx([9.38, 4.17, 0.86], abs=0.005)
    assert counts[2] <= 0.1 * sum(counts)
    _, conditional = built("mdm-mini", "model.condition.num_classes=101")
    assert millions(conditional) < 20
    _, larger = built("mdm-ucf101")
    assert millions(larger.denoiser.levels[2]) <= 0.1 * millions(larger)


def test_a_class_model_without_a_number_of_classes_says_what_to_do():
    with pytest.raises(ConfigError, match="num_classes is not set"):
        MdmFamily(tiny_model(condition={"kind": "class"}))
