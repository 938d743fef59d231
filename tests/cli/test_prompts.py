"""Text end to end: train on captions, sample by prompt, with a transformer of our own and with a frozen tower."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core import load_model, sample
from hpdm_core.data.write import read_npz
from hpdm_core.errors import ConfigError
from hpdm_core.families.prompts import prompt_notes, read_prompts
from hpdm_core.families.weights import read_header
from tests.support.tiny_clip import ARCH, register, save_tower
from tests.support.toy import state_hash

STEPS = {"steps": (2, 1, 1)}


def hpdm(command: str | list[str]) -> Result:
    return CliRunner().invoke(app, command.split() if isinstance(command, str) else command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioned store, and a run of the text smoke preset on it."""
    folder = tmp_path_factory.mktemp("text")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    prepare = f"prepare-data --source synthetic --num 8 --frames 8 --size 32x32 --out {folder}/store --workers 1"
    train = f"train --preset hpdm-text-smoke --data {folder}/store --out {folder}/run --device cpu"
    for command in (prepare, f"{train} --set train.sample_every_steps=4 --set train.sample_seeds=2"):
        result = hpdm(command)
        assert result.exit_code == 0, result.output
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(folder: Path):
    """The trained model, every weight of its text side enlarged: after four steps it hardly listens."""
    model = load_model(folder / "run")
    with torch.no_grad():
        model.family.text.project.weight.mul_(3.0)
        model.family.denoiser.head.detokenize.weight.mul_(30.0)
    return model


def pixels(model, prompts, seeds, **kwargs):
    return [s.video for s in sample(model, seeds=seeds, prompts=prompts, device="cpu", **STEPS, **kwargs)]


def test_the_model_file_holds_the_words_of_its_store(folder: Path) -> None:
    (weights,) = (folder / "run" / "checkpoints").glob("step_00000004/weights.safetensors")
    text = read_header(weights).config["model"]["condition"]["text"]
    assert {"circle", "sliding", "background"} <= set(text["words"])
    assert (folder / "run" / "samples" / "step_00000004" / "grid.mp4").stat().st_size > 0


def test_different_prompts_make_different_videos(model) -> None:
    one, two = (pixels(model, [text], [0])[0] for text in ("a blue circle sliding", "a large square orbiting"))
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, pixels(model, [], [0])[0])


def test_a_prompt_and_a_seed_make_the_same_pixels_whatever_is_beside_them(model) -> None:
    prompts = ["a blue circle sliding", "a large square orbiting left over a cloudy background"]
    together = pixels(model, prompts, [0, 1, 2], batch=3)
    # Of two prompts, seed 2 shows the first.
    alone = [pixels(model, [prompts[k % 2]], [k])[0] for k in range(3)]
    by_seed = pixels(model, {k: prompts[k % 2] for k in range(3)}, [0, 1, 2], batch=2)
    for a, b, c in zip(together, alone, by_seed, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_guidance(model) -> None:
    prompts = ["a blue circle sliding"]
    plain = pixels(model, prompts, [0])[0]
    assert np.array_equal(plain, pixels(model, prompts, [0], guidance=(1.0,))[0])
    guided = pixels(model, prompts, [0], guidance=(4.0,))[0]
    assert not np.array_equal(plain, guided)
    away = pixels(model, prompts, [0], guidance=(4.0,), negative="a large square")[0]
    assert not np.array_equal(guided, away)
    # Away from the prompt itself leads nowhere, whatever the weight.
    same = pixels(model, prompts, [0], guidance=(4.0,), negative=prompts[0])[0]
    assert np.abs(same.astype(int) - plain).max() <= 1
    # Oscillating between a weight and itself is that weight.
    assert np.array_equal(guided, pixels(model, prompts, [0], guidance=(4.0,), guidance_low=4.0)[0])
    assert not np.array_equal(guided, pixels(model, prompts, [0], guidance=(4.0,), guidance_low=1.0)[0])
    assert not np.array_equal(guided, pixels(model, prompts, [0], guidance=(4.0,), dynamic_threshold=0.5)[0])


def test_what_a_prompt_loses_is_said(model, caplog: pytest.LogCaptureFixture) -> None:
    (note,) = prompt_notes(model, ["a blue dragon", "a blue circle"])
    assert "'a blue dragon'" in note
    assert "never met dragon" in note
    assert "circle" in note
    (note,) = prompt_notes(model, ["a circle " * 20])
    assert "leaves out the end" in note
    with caplog.at_level(logging.WARNING):
        pixels(model, ["a blue unicorn"], [0])
    assert "never met unicorn" in caplog.text


def test_the_command_names_files_by_seed_and_records_the_prompt(folder: Path, tmp_path: Path) -> None:
    words = ["sample", "--ckpt", str(folder / "run"), "--device", "cpu", "--set", "steps=[1,1,1]"]
    given = ["--prompt", "a blue circle", "--prompt", "a large square", "--format", "npz", "--out", str(tmp_path / "a")]
    result = hpdm([*words, *given])
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "a" / "seed_000001.npz") as file:
        facts = json.loads(str(file["metadata"]))
    assert (facts["seed"], facts["prompt"]) == (1, "a large square")
    manifest = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert manifest["prompts"] == ["a blue circle", "a large square"]
    again = hpdm([*words, "--prompt", "a ring", "--format", "npz", "--out", str(tmp_path / "a")])
    assert again.exit_code == 2
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a large square", "seed": 1}\n{"prompt": "a blue circle", "seeds": [5, 7]}\n')
    result = hpdm([*words, "--prompts", str(file), "--format", "npz", "--out", str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "b").glob("*.npz")) == [f"seed_{k:06d}.npz" for k in (1, 5, 7)]
    one, two = (read_npz(tmp_path / name / "seed_000001.npz")[0] for name in "ab")
    assert np.array_equal(one, two)


def test_scoring_without_captions_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDM_CACHE", str(tmp_path / "cache"))
    real, lines, out = tmp_path / "real.npz", tmp_path / "lines.txt", tmp_path / "out.json"
    np.savez(real, np.random.default_rng(0).integers(0, 256, (3, 8, 32, 32, 3), dtype=np.uint8))
    lines.write_text("a blue circle\na large square\n" * 2)
    words = f"eval-fvd --real {real} --fake {folder}/run --detector tests.support.toy_detector:build --n 3 --level 0 "
    words += f"--set clip.frames=2 --device cpu --json {out}"
    silent = hpdm(words)
    assert silent.exit_code == 0, silent.output
    assert silent.stderr.count("without any: give --prompts FILE") == 1
    assert json.loads(out.read_text())["fake"]["captions"].startswith("none")
    told = hpdm(f"{words} --prompts {lines}")
    assert told.exit_code == 0, told.output
    assert "--prompts" not in told.stderr
    assert "lines.txt" in json.loads(out.read_text())["fake"]["captions"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--prompt", "a", "--prompts", "file"], "not both"),
        (["--prompt", " "], "empty"),
        (["--negative", "a star"], "--guidance 4"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--class", "circle sliding", "--prompt", "a circle"], "not conditioned on classes"),
    ],
)
def test_mistakes_are_explained(folder: Path, tmp_path: Path, given: list[str], words: str) -> None:
    result = hpdm(["sample", "--ckpt", str(folder / "run"), "--out", str(tmp_path / "out"), *given])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_files_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red star\n\n  two circles \n")
    assert read_prompts(file) == ["a red star", "two circles"]
    table = tmp_path / "prompts.jsonl"
    table.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert read_prompts(table) == ["a", "b"]
    for text, words in [
        ('{"prompt": "a", "seed": 1}\n{"prompt": "b"}\n', "some have none"),
        ('{"prompt": "a", "seed": 1}\n{"prompt": "b", "seeds": [1]}\n', "seed 1 twice"),
        ('{"prompt": "a", "seed": -1}\n', "line 1"),
        ('{"prompt": "a", "sed": 1}\n', "unknown key sed"),
        ('{"text": "a"}\n', "no prompt"),
        ("a red star\n", "not JSON"),
        ("\n", "no prompts"),
    ]:
        table.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_prompts(table)


def test_a_class_model_says_what_it_knows(folder: Path, tmp_path: Path) -> None:
    train = f"train --preset hpdm-smoke --data {folder}/store --out {tmp_path}/run --device cpu --set train.max_steps=1"
    assert hpdm(train).exit_code == 0
    result = hpdm(["sample", "--ckpt", str(tmp_path / "run"), "--prompt", "a red star"])
    assert result.exit_code == 2
    assert "--class 'circle sliding'" in result.stderr


def test_training_on_text_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    result = hpdm(f"train --preset hpdm-text-smoke --data {folder}/store --out {run} --device cpu")
    assert result.exit_code == 0, result.output
    name = "checkpoints/step_00000004"
    assert state_hash(run / name) == state_hash(folder / "run" / name)


def test_a_frozen_tower_end_to_end(folder: Path, tmp_path: Path) -> None:
    store, tower = tmp_path / "store", tmp_path / "tower.safetensors"
    shutil.copytree(folder / "store", store)
    register(tmp_path)
    save_tower(tower)
    preset = tmp_path / "frozen.yaml"
    preset.write_text(
        "extends: hpdm-smoke\nmodel:\n  condition:\n    kind: text\n"
        f"    text: {{mode: frozen, arch: {ARCH}, quick_gelu: false}}\n"
    )
    train = f"train --preset {preset} --data {store} --out {tmp_path}/run --device cpu"
    result = hpdm(train)
    assert result.exit_code == 3
    assert f"hpdm cache-text {store} --arch {ARCH}" in result.stderr
    result = hpdm(f"cache-text {store} --arch {ARCH} --path {tower} --no-quick-gelu --device cpu")
    assert result.exit_code == 0, result.output
    assert hpdm(f"cache-text {store} --arch {ARCH} --path {tower}").exit_code == 2
    result = hpdm(train)
    assert result.exit_code == 0, result.output
    words = ["sample", "--ckpt", str(tmp_path / "run"), "--device", "cpu", "--set", "steps=[1,1,1]", "--format", "npz"]
    result = hpdm([*words, "--prompt", "a blue circle", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    save_tower(tower, seed=1)
    result = hpdm([*words, "--prompt", "a blue circle", "--out", str(tmp_path / "other")])
    assert result.exit_code == 4
    assert "another file" in result.stderr
    tower.unlink()
    result = hpdm([*words, "--prompt", "a blue circle", "--out", str(tmp_path / "none")])
    assert result.exit_code == 5
