"""Every preset is a model that can be built, of the size that it states, and that can sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpdm_core.config.load import dump_config, parse_config, plain_config
from hpdm_core.config.presets import list_presets, preset_description
from hpdm_core.config.schema import RunConfig
from hpdm_core.families import generate
from hpdm_core.families.base import Family
from hpdm_core.families.registry import build_family, family_sections, load_run_config
from hpdm_core.families.settings import fast_options
from hpdm_core.families.weights import LoadedModel, WeightsHeader
from hpdm_core.sampling.stage import Request
from hpdm_core.training.conditions import with_placeholders


def needs_store(config: RunConfig) -> bool:
    """Whether the model's size depends on the classes or words of the training store."""
    condition = getattr(config.model, "condition", None)
    if condition is None or condition.kind == "none":
        return False
    open_values = [condition.num_classes] if condition.kind == "class" else []
    if condition.kind == "text":
        text = condition.text
        open_values = [text.words or text.vocabulary == "full"] if text.mode == "joint" else [text.width]
    return not all(open_values)


def on_meta(config: RunConfig) -> Family:
    with torch.device("meta"):
        return build_family(with_placeholders(config))


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
    assert config.parameters == (None if needs_store(config) else parameters)


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
    prompts = ("a red star",) if condition is not None and condition.kind == "text" else None
    outline = family.outline(Request(seeds=(0,), labels=labels, prompts=prompts), config.sample)
    assert outline.frames >= 1
    assert all(stage.calls >= 1 for stage in outline.stages)


def test_fast_takes_fewer_calls(preset: str) -> None:
    config = load_run_config(preset)
    model = LoadedModel(on_meta(config), with_placeholders(config), WeightsHeader({}), Path(preset), "")
    slow, fast = (
        generate.outline(model, frames=None, size=None, **options).stages for options in ({}, fast_options(model))
    )
    assert [stage.name for stage in fast] == [stage.name for stage in slow]
    calls = [(a.tile_calls, b.tile_calls) for a, b in zip(fast, slow, strict=True)]
    assert all(few <= many for few, many in calls)
    assert sum(few for few, _ in calls) < sum(many for _, many in calls)
