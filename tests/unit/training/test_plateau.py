"""A phase that ends at its best evaluation, and what an evaluation measures."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpdm_core.families.base import Plateau
from hpdm_core.metrics.frechet import frechet_from_features
from hpdm_core.training import plateau
from hpdm_core.training import run as run_module
from hpdm_core.training.checkpoint import open_checkpoint
from hpdm_core.training.distributed import World
from hpdm_core.training.plateau import FrechetScore
from hpdm_core.training.run import fit
from tests.support.toy import ToySource, read_log, state_hash, toy_config

SCORES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5, 12: 0.1, 14: 7.0}
CONFIG = toy_config({"plateau": (2, 2)}, max_steps=14, checkpoint_every_steps=5, keep_checkpoints=1)


def scripted(trainer, source, rule, rows):
    """Evaluations whose outcome is known."""
    return lambda: SCORES[trainer.state.step]


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "FrechetScore", scripted)


def model_tensors(run, step):
    checkpoint = open_checkpoint(run / "checkpoints" / f"step_{step:08d}")
    names = [name for name in checkpoint.record["tensors"] if name.startswith("model/")]
    tensors = {name: torch.empty(checkpoint.record["tensors"][name]) for name in names}
    checkpoint.read_some(tensors)
    return tensors


def test_the_phase_ends_as_its_best_evaluation_left_it(tmp_path):
    config = toy_config({"plateau": (2, 2)}, max_steps=14, keep_checkpoints=99)
    result = fit(config, ToySource(), tmp_path / "run", device="cpu")
    # No new best in two evaluations after step 4: the first phase ends at step 8, the second adds two steps.
    assert result.step == 10
    lines = [line for line in read_log(tmp_path / "run") if "plateau" in line]
    assert [(line["step"], line["plateau"]) for line in lines] == [(2, 3.0), (4, 1.0), (6, 2.0), (8, 1.5)]
    best, last, before = (model_tensors(tmp_path / "run", step) for step in (4, 8, 6))
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert any(not torch.equal(best[name], before[name]) for name in best)


def test_a_phase_that_ends_early_is_sampled_at_its_end(tmp_path):
    seen = []
    config = toy_config({"plateau": (2, 2)}, max_steps=14, sample_every_steps=1000)
    fit(config, ToySource(), tmp_path / "run", device="cpu", sample=lambda family, folder: seen.append(folder.name))
    assert seen == ["step_00000008", "step_00000010"]


def test_a_phase_that_improves_to_its_end_keeps_its_last_weights(tmp_path):
    config = toy_config({"plateau": (2, 9)}, max_steps=12, keep_checkpoints=99)
    result = fit(config, ToySource(), tmp_path / "run", device="cpu")
    assert result.step == 14
    plain = fit(toy_config(max_steps=12), ToySource(), tmp_path / "plain", device="cpu")
    ours, theirs = model_tensors(tmp_path / "run", 12), model_tensors(plain.run, 12)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("lost", [(10,), (10, 8)])
def test_a_resumed_run_decides_alike(tmp_path, lost):
    straight = fit(CONFIG, ToySource(), tmp_path / "straight", device="cpu")
    keep = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"keep_checkpoints": 99})})
    fit(keep, ToySource(), tmp_path / "again", device="cpu")
    for step in lost:
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step_{step:08d}")
    again = fit(CONFIG, ToySource(), tmp_path / "again", device="cpu")
    assert again.resumed
    assert state_hash(again.weights.parent) == state_hash(straight.weights.parent)
    assert read_log(again.run) == read_log(straight.run)


def test_the_best_checkpoint_outlives_the_newest_ones(tmp_path):
    kept = []

    class Seen(run_module.CheckpointHook):
        def run(self, state):
            super().run(state)
            kept.append(sorted(int(path.name[-8:]) for path in (tmp_path / "run" / "checkpoints").iterdir()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "CheckpointHook", Seen)
        config = toy_config(
            {"plateau": (2, 2)}, max_steps=14, checkpoint_every_steps=5, keep_checkpoints=1, async_checkpoint=False
        )
        fit(config, ToySource(), tmp_path / "run", device="cpu")
    assert kept == [[2], [4], [4, 5], [4, 6], [4, 8], [10]]


class PixelDetector:
    """Features are the pixels' means by colour: cheap, and enough to tell clips apart."""

    dimension, min_frames = 3, 4

    def features(self, clips):
        assert clips.shape[1] == 4, "too short clips hold their last frame"
        return clips.float().mean(dim=(1, 2, 3))


def test_the_score_is_the_distance_of_clips_to_their_reconstructions(monkeypatch):
    monkeypatch.setattr(plateau, "build_detector", lambda *args, **kwargs: PixelDetector())
    seen = []

    def reconstruct(batch):
        clips = batch.videos["clip"].clamp(-1, 1)
        seen.append(clips)
        return clips, -clips

    trainer = SimpleNamespace(
        world=World(torch.device("cpu")), train=toy_config().train, phase=SimpleNamespace(name="first"),
        family=SimpleNamespace(view=lambda phase: None),
    )  # fmt: skip
    score = FrechetScore(trainer, ToySource(), Plateau(reconstruct, 2, 1, clips=6), rows=4)
    found = score()
    assert len(torch.cat(seen)) == 8
    real, fake = (
        np.concatenate([plateau.features(PixelDetector(), sign * clips) for clips in seen]) for sign in (1, -1)
    )
    assert found == pytest.approx(frechet_from_features(real, fake), rel=1e-9)
    assert found > 0
    assert score() == found
    same = FrechetScore(trainer, ToySource(), Plateau(lambda b: (reconstruct(b)[0],) * 2, 2, 1, clips=6), rows=4)
    assert same() == pytest.approx(0.0, abs=1e-6)
