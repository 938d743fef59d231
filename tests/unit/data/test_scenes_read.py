"""Scenes read back from their pixels, and a text model scored by what is read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks import levels, prompts, shapes_reader
from benchmarks.levels import level_chunks
from benchmarks.shapes_reader import ATTRIBUTES, Reading, asked_of, read_video
from hpdm_core.data.scenes import scene_prompts
from hpdm_core.data.synthetic import render_clip


def clips(num: int, *, frames: int = 8, size: tuple[int, int] = (36, 64), step: int = 8):
    for index in range(num):
        video, info = render_clip(21, index, frames, size, "scenes", step)
        yield video, {name: getattr(info.scene, name) for name in ATTRIBUTES}


def test_coarse_clips_are_read_right() -> None:
    results = [asked_of(facts, read_video(video)) for video, facts in clips(60)]
    accuracy = shapes_reader.accuracy(results)
    assert set(accuracy) == set(ATTRIBUTES)
    assert min(accuracy.values()) > 0.95, accuracy


def test_fine_clips_are_read_right() -> None:
    results = [asked_of(facts, read_video(video)) for video, facts in clips(6, frames=16, size=(144, 256), step=4)]
    assert min(shapes_reader.accuracy(results).values()) > 0.8


def test_reading_bears_the_flaws_of_generated_videos() -> None:
    rng = np.random.default_rng(0)
    results = []
    for video, facts in clips(40):
        blurred = ndimage.gaussian_filter(video.astype(float), (0, 0.6, 0.6, 0)) + rng.normal(0, 15, video.shape)
        results.append(asked_of(facts, read_video(np.clip(blurred, 0, 255).astype(np.uint8))))
    assert min(shapes_reader.accuracy(results).values()) > 0.85


def test_the_reader_finds_nothing_where_nothing_is() -> None:
    assert read_video(np.full((8, 36, 64, 3), 60, dtype=np.uint8)) == Reading()
    noise = np.random.default_rng(0).integers(0, 256, (8, 36, 64, 3)).astype(np.uint8)
    assert isinstance(read_video(noise), Reading)


def test_a_direction_counts_only_where_one_is_asked_for() -> None:
    reading = Reading(1, "red", "star", "spin", "")
    facts = {"colour": "red", "shape": "ring", "motion": "spin", "direction": ""}
    assert asked_of(facts, reading) == {"colour": True, "shape": False, "motion": True}


def arguments(tmp_path: Path, **changes: object) -> argparse.Namespace:
    given = {"num": 34, "guidance": [1.0], "frames": 8, "size": (36, 64), "out": tmp_path / "scores.json",
             "batch": 4, "device": "cpu", "precision": None, "level": None, "steps": None, "chunk": None}  # fmt: skip
    return argparse.Namespace(**{**given, **changes})


def test_a_perfect_model_scores_one_and_chance_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        prompts,
        "generated_videos",
        lambda model, asked, batch, device, options: prompts.real_videos(asked, 8, (36, 64)),
    )
    guided = SimpleNamespace(config=SimpleNamespace(sample=SimpleNamespace(guidance=(3.0, 1.0))))
    rows = prompts.measure(guided, arguments(tmp_path))  # type: ignore[arg-type]  # all that is asked of the model
    for row in rows:
        if row["kind"] == "chance":
            assert 0 <= row["all"] <= row["pair"] < row["colour"] < 0.3
        else:
            assert row["all"] > 0.9
    assert [row["kind"] for row in rows] == ["model", "chance", "model", "chance", "real", "real"]
    assert (tmp_path / "scores-w1.png").is_file()


def test_a_gpu_is_given_many_videos_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "chunk" not in prompts._options(arguments(tmp_path), (1.0,))
    assert prompts._options(arguments(tmp_path, chunk=3), (1.0,))["chunk"] == 3
    assert level_chunks(torch.device("cpu"), 16) == {}
    assert level_chunks(torch.device("cuda"), 16) == {"chunk": [16, 64]}
    monkeypatch.setattr(prompts, "pick_device", torch.device)
    for batch, chunk in ((4, 4), (128, 64)):
        assert prompts._options(arguments(tmp_path, device="cuda", batch=batch), (1.0,))["chunk"] == chunk
    assert prompts._options(arguments(tmp_path, device="cuda", chunk=3), (1.0,))["chunk"] == 3


def test_the_callers_chunk_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Exception):
        pass

    def tell(model: object, options: object) -> None:
        raise Told(options)

    monkeypatch.setattr(levels, "level_chunks", lambda device, batch: {"chunk": [batch, 64]})
    monkeypatch.setattr(levels, "sample_options", tell)
    model = SimpleNamespace(family=torch.nn.Linear(1, 1))
    for given, chunk in ({}, [16, 64]), ({"chunk": 5}, 5):
        with pytest.raises(Told) as told:
            levels.sample_levels(model, [0], **given)  # type: ignore[arg-type]
        assert told.value.args[0]["chunk"] == chunk


def test_few_prompts_are_spread_over_the_pairs() -> None:
    few = prompts.prompts_for(True, 4)
    assert len({prompt.text for prompt in few}) == 4
    assert {len(prompt.pair) for prompt in few} == {2, 3}  # looks and moves
    every = scene_prompts(True)
    assert [p.text for p in prompts.prompts_for(True, 40)][len(every) :][:3] == [p.text for p in every[:3]]


@pytest.mark.slow
def test_an_untrained_text_model_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from hpdm_cli.app import app

    store, run, out = tmp_path / "store", tmp_path / "run", tmp_path / "scores.json"
    scenes = f"--style scenes --split train --num 8 --frames 8 --frame-step 8 --size 32x32 --out {store}"
    for command in (
        f"prepare-data --source synthetic {scenes} --workers 1",
        f"train --preset hpdm-text-smoke --data {store} --out {run} --device cpu",
    ):
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    words = f"prompts --ckpt {run} --num 2 --guidance 1,3 --steps 2,1,1 --batch 4 --device cpu --out {out}"
    monkeypatch.setattr("sys.argv", words.split())
    prompts.main()
    written = json.loads(out.read_text(encoding="utf-8"))
    assert len(written["rows"]) == 2 * 2 * 2 + 2
    assert written["rows"][0]["video"] == [8, 32, 32]
    assert written["checkpoint"]["step"] == 4
