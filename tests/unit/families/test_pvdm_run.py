"""The smoke preset from a store to a video, through the same loop, checkpoints and sampler as every family."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.errors import StoppedOnRequest
from hpdm_core.families.generate import outline, sample
from hpdm_core.families.registry import load_run_config
from hpdm_core.families.weights import load_model, read_header
from hpdm_core.training.run import train


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("pvdm") / "store"
    scan = scan_source(SourceOptions(kind="synthetic", path=None, num_clips=6, num_frames=9))
    prepare_store(scan, path, Recipe(sizes=((32, 32),)), PrepareOptions(workers=1))
    return path


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A finished run; all its checkpoints are kept."""
    out = tmp_path_factory.mktemp("pvdm-run") / "run"
    train(load_run_config("pvdm-smoke", ["train.keep_checkpoints=99"]), store, out, device="cpu")
    return out


def weights(run, step):
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "weights.safetensors")


def moved(before, after):
    """The top-level parts whose tensors differ."""
    return {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}


def test_all_phases_run_and_each_trains_its_own_part(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [
        *[("ae", step) for step in (1, 2)],
        *[("ae_gan", step) for step in (1, 2, 3, 4)],
        *[("ldm", step) for step in (1, 2, 3, 4)],
    ]
    turns = ["hinge" if "hinge" in line["loss_levels"] else "l1" for line in lines[2:6]]
    assert turns == ["l1", "hinge", "l1", "hinge"]
    assert set(lines[-1]["loss_levels"]) == {"hw", "tw", "th"}
    assert moved(weights(run, 2), weights(run, 6)) == {"autoencoder", "critics"}
    # The latent space is the autoencoder: it stays as it is while the denoiser trains.
    assert moved(weights(run, 8), weights(run, 10)) == {"denoiser", "labels"}


def test_the_header_records_what_reconstruction_trained_on(run):
    header = read_header(run / "checkpoints" / "step_00000010" / "weights.safetensors")
    assert header.config["model"]["training"]["perceptual"] == {"vgg": None, "heads": None}
    assert (header.phase, header.step) == ("ldm", 4)


def test_two_clips_from_the_trained_model(run):
    model = load_model(run)
    assert outline(model, frames=8, size=None).frames == 8
    videos = sample(model, num=3, frames=8, batch=3, device="cpu")
    assert [(v.video.shape, v.video.dtype) for v in videos] == [((8, 32, 32, 3), np.dtype("uint8"))] * 3
    alone = sample(model, seeds=(2,), frames=8, device="cpu")[0]
    assert np.array_equal(alone.video, videos[2].video)


@pytest.mark.parametrize("stopped_after", ["ae_gan", "ldm"])
def test_a_stopped_run_continues_bit_for_bit(run, store, tmp_path, monkeypatch, stopped_after):
    config, out = load_run_config("pvdm-smoke", ["train.keep_checkpoints=99"]), tmp_path / "run"
    from hpdm_core.training import run as run_module

    class StopInPhase(run_module.CheckpointHook):
        def run(self, state):
            super().run(state)
            if state.phase == stopped_after and not state.finished:
                raise StoppedOnRequest("test")

    monkeypatch.setattr(run_module, "CheckpointHook", StopInPhase)
    with pytest.raises(StoppedOnRequest):
        train(config, store, out, device="cpu")
    monkeypatch.undo()
    assert train(config, store, out, device="cpu").resumed
    for name, tensor in weights(run, 10).items():
        assert torch.equal(weights(out, 10)[name], tensor), name


def test_a_run_without_the_adversarial_phase(store, tmp_path):
    changes = ["model.training.ae_gan=null", "model.condition.kind=none", "train.max_steps=2"]
    train(load_run_config("pvdm-smoke", changes), store, tmp_path / "run", device="cpu")
    model = load_model(tmp_path / "run")
    assert model.family.critics is None
    assert sample(model, num=1, device="cpu")[0].video.shape == (4, 32, 32, 3)


def test_the_adversarial_phase_stops_at_its_best_reconstructions(store, tmp_path):
    """One real evaluation by the random network; what the rule decides is tested with the loop."""
    changes = ["model.training.ae_gan.stop={every_steps: 3, clips: 2}", "model.training.ae_gan.steps=3"]
    small = ["train.max_steps=1", "model.training.ae.steps=1", "model.training.alternate_steps=2"]
    train(load_run_config("pvdm-smoke", [*changes, *small]), store, tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("plateau", 0) > 0] == [3]
