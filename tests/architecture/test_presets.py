"""Every preset is a model that can be built, of the size that it states, and that can sample."""

from __future__ import annotations

import pytest
import torch

from hpdm_core.config.load import dump_config, parse_config, plain_config
from hpdm_core.config.presets import list_presets, preset_description
from hpdm_core.config.schema import RunConfig
from hpdm_core.families.base import Family
from hpdm_core.families.registry import build_family, family_sections, load_run_config
from hpdm_core.sampling.stage import Request

CLASSES_IF_FROM_STORE = 10


def classes_from_store(config: RunConfig) -> bool:
    """Whether the model's size depends on the class count of the training store."""
    condition = getattr(config.model, "condition", None)
    return condition is not None and condition.kind == "class" and condition.num_classes is None


def with_classes(config: RunConfig) -> RunConfig:
    """`config` with a class count where it would take that of the training store."""
    if not classes_from_store(config):
        return config
    condition = config.model.condition.model_copy(update={"num_classes": CLASSES_IF_FROM_STORE})
    return config.model_copy(update={"model": config.model.model_copy(update={"condition": condition})})


def on_meta(config: RunConfig) -> Family:
    with torch.device("meta"):
        return build_family(with_classes(config))


@pytest.fixture(params=list_presets())
def preset(request: pytest.FixtureRequest) -> str:
    """Each run preset in turn."""
    return request.param


def test_builds_on_meta_with_the_stated_parameters(preset: str) -> None:
    config = load_run_config(preset)
    family = on_meta(config)
    parameters = sum(p.numel() for p in family.parameters())
    assert all(p.is_meta for p in family.parameters())
    assert parameters > 0
    assert config.parameters == (None if classes_from_store(config) else parameters)


def test_says_what_it_is(preset: str) -> None:
    assert 10 <= len(preset_description(preset)) <= 100


def test_round_trips(preset: str) -> None:
    config = load_run_config(preset)
    assert parse_config(plain_config(config), family_sections, where=preset) == config
    assert dump_config(config)


def test_can_plan_training_and_sampling(preset: str) -> None:
    config = load_run_config(preset)
    family = on_meta(config)
    assert [family.view(phase.name).frames for phase in family.phases()]
    condition = getattr(config.model, "condition", None)
    labels = (0,) if condition is not None and condition.kind == "class" else None
    outline = family.outline(Request(seeds=(0,), labels=labels), config.sample)
    assert outline.frames >= 1
    assert all(stage.calls >= 1 for stage in outline.stages)
