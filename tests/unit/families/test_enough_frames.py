"""How many frames are asked for where a metric looks at the first few."""

from pathlib import Path

import numpy as np
import pytest

from hpdm_core.config.load import plain_config
from hpdm_core.families.generate import enough_frames, sample
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.weights import LoadedModel, WeightsHeader


def untrained(preset, *overrides):
    config = load_run_config(preset, ("model.condition={kind: none}", *overrides))
    family = build_family(config).eval().requires_grad_(False)
    return LoadedModel(family, config, WeightsHeader(config=plain_config(config)), Path("none"), "")


@pytest.mark.parametrize(
    ("needed", "options", "asked"),
    [(2, {}, 2), (8, {}, None), (2, {"overlap": "full"}, None), (2, {"level": 1}, 2), (4, {"level": 1}, None)],
)
def test_no_more_than_is_looked_at_where_these_frames_are_the_same(needed, options, asked):
    assert enough_frames(untrained("hpdm-smoke"), needed, **options) == asked


def test_the_frames_are_those_of_the_whole_video():
    model = untrained("hpdm-smoke")
    whole, first = (sample(model, num=1, frames=frames, device="cpu", steps=[1])[0].video for frames in (None, 3))
    assert np.array_equal(first, whole[:3])


def test_families_that_make_no_promise_make_the_whole_video():
    assert enough_frames(untrained("pvdm-smoke"), 2) is None


@pytest.mark.parametrize(("needed", "asked"), [(5, 8), (8, 8), (9, 12)])
def test_models_that_chain_clips_make_as_many_as_are_looked_at(needed, asked):
    assert enough_frames(untrained("pvdm-smoke"), needed) == asked


@pytest.mark.parametrize("preset", ["hpdm-smoke", "mdm-smoke"])
def test_other_models_do_not_go_on_after_their_video(preset):
    assert enough_frames(untrained(preset), 9) is None
