"""The smoke preset from a store to a video, through the same loop, checkpoints and sampler as every family."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from hpdm_cli.app import app
from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.errors import StoppedOnRequest
from hpdm_core.families.generate import outline, sample
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.weights import load_model
from hpdm_core.training.plan import plan_training
from hpdm_core.training.run import train
from hpdm_core.training.source import with_classes

KEEP = "train.keep_checkpoints=99"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("mdm") / "store"
    scan = scan_source(SourceOptions(kind="synthetic", path=None, num_clips=10, num_frames=10))
    prepare_store(scan, path, Recipe(sizes=((32, 32), (16, 16))), PrepareOptions(workers=1))
    return path


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A finished run; all its checkpoints are kept."""
    out = tmp_path_factory.mktemp("mdm-run") / "run"
    train(load_run_config("mdm-smoke", [KEEP]), store, out, device="cpu")
    return out


def weights(run, step):
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "weights.safetensors")


def moved(before, after):
    """Which levels (or other parts) have tensors that differ."""
    names = {name for name in after if not torch.equal(before[name], after[name])}
    return {".".join(name.split(".")[:3]) if ".levels." in name else name.split(".")[-3] for name in names}


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_each_phase_adds_a_level_and_goes_on_training_those_inside(run):
    lines = log_of(run)
    assert [(line["phase"], line["step"]) for line in lines] == [
        (phase, step) for phase in ("low", "mid", "full") for step in (1, 2)
    ]
    assert [sorted(line["loss_levels"]) for line in lines[::2]] == [
        ["level0"], ["level0", "level1"], ["level0", "level1", "level2"]
    ]  # fmt: skip
    levels = [f"denoiser.levels.{k}" for k in range(3)]
    for step, inside in ((2, 1), (4, 2), (6, 3)):
        changed = moved(weights(run, step - 1), weights(run, step))
        assert {name for name in changed if "levels" in name} == set(levels[:inside])


def test_a_checkpoint_of_a_phase_samples_what_it_has_trained(run):
    extents = []
    for step in (2, 4, 6):
        model = load_model(run / "checkpoints" / f"step_{step:08d}")
        plan = outline(model, frames=None, size=None)
        video = sample(model, num=1)[0].video
        assert video.dtype == np.uint8
        assert video.shape == (plan.frames, *plan.size, 3)
        extents.append(video.shape[:3])
    assert extents == [(1, 16, 16), (8, 16, 16), (8, 32, 32)]


def test_samples_are_a_function_of_their_seed_and_class(run):
    model = load_model(run)
    together = sample(model, num=3, batch=3, classes=["0", "1", "2"])
    alone = sample(model, seeds=[2], classes=["0", "1", "2"])[0]
    assert np.array_equal(together[2].video, alone.video)
    assert together[2].label == alone.label == 2


def test_a_run_stopped_in_a_phase_continues_as_if_it_had_not_been(run, store, tmp_path):
    again = tmp_path / "again"
    config = load_run_config("mdm-smoke", [KEEP])
    stops = 0
    while True:
        try:
            train(config, store, again, device="cpu", time_limit=0.0)
            break
        except StoppedOnRequest:
            stops += 1
    assert stops >= 3
    assert [line["loss"] for line in log_of(again)] == [line["loss"] for line in log_of(run)]
    first, second = weights(run, 6), weights(again, 6)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_smaller_run_becomes_the_inside_of_a_larger_one(run):
    small = weights(run, 2)
    config = with_classes(load_run_config("mdm-smoke"), ["x"] * 10)
    family = build_family(config)
    inner = {name: t for name, t in small.items() if not name.startswith(("denoiser.levels.1", "denoiser.levels.2"))}
    assert family.load_inner(inner) == 1
    assert family.denoiser.trained_levels() == 1


def test_finetune_hires_wraps_a_trained_nest_in_one_more_level(store, tmp_path):
    """The base is a preset file of the two inner levels; the same command again has nothing left to do."""
    levels = load_run_config("mdm-smoke").model.model_dump(mode="json")["levels"]
    inner = tmp_path / "inner.yaml"
    model = {"levels": levels[:2], "row_mix": None, "phases": [{"name": "full", "levels": 2}]}
    inner.write_text(yaml.safe_dump({"extends": "mdm-smoke", "model": model, "train": {"max_steps": 2}}))
    base = train(load_run_config(inner), store, tmp_path / "base", device="cpu")
    words = ["finetune-hires", "--from", str(tmp_path / "base"), "--preset", "mdm-smoke", "--data", str(store)]
    words += ["--set", 'model.phases=[{"name": "full", "levels": 3, "steps": 1}]', "--out", str(tmp_path / "grown")]
    result = CliRunner().invoke(app, [*words, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "level 1  reused" in result.stdout
    assert "level 2  new" in result.stdout
    result = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    small, large = load_file(base.weights), weights(tmp_path / "grown", 1)
    assert {name.split(".")[2] for name in large.keys() - small.keys()} == {"2"}
    assert small.keys() <= large.keys()
    # From the base's weights, and not from new ones: one step moves them by no more than the learning rate allows.
    assert all((large[name] - small[name]).abs().max() < 0.02 for name in small)
    again = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert again.exit_code == 0, again.output
    refused = CliRunner().invoke(app, [*words[:2], str(tmp_path / "grown"), *words[3:-1], str(tmp_path / "more")])
    assert refused.exit_code == 2
    assert "nothing would be added" in refused.stderr


def test_the_plan_of_a_run_names_its_phases_and_sizes(store):
    plan = plan_training(load_run_config("mdm-smoke"), store)
    assert [(p.name, p.frames, p.sizes) for p in plan.phases] == [
        ("low", 8, ((16, 16),)),
        ("mid", 8, ((16, 16),)),
        ("full", 8, ((32, 32), (16, 16))),
    ]
    assert (plan.sampling.frames, plan.sampling.size) == (8, (32, 32))


def test_smaller_networks_of_the_paper_presets_take_more_rows_at_a_time():
    plan = plan_training(load_run_config("mdm-ucf101"), None)
    assert [(phase.name, phase.batch_size, phase.micro_batch) for phase in plan.phases] == [
        ("low", 64, 64), ("mid", 64, 16), ("full", 64, 4),
    ]  # fmt: skip
