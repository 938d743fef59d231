"""Text end to end for every family: train on captions, sample by prompt, guide, lead away, resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core import load_model, sample
from hpdm_core.data.write import read_npz
from hpdm_core.families.weights import save_weights
from tests.support.toy import state_hash

PROMPT, OTHER = "a blue circle sliding", "a large square orbiting"


def hpdm(command: str | list[str]) -> Result:
    result = CliRunner().invoke(app, command.split() if isinstance(command, str) else command)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def store(prepared: Callable[[str], Path]) -> Path:
    """A captioned store."""
    return prepared("--num 8 --frames 8 --size 32x32")


@pytest.fixture(scope="module", params=["pvdm-text-smoke", "mdm-text-smoke"])
def run(request: pytest.FixtureRequest, store: Path) -> Path:
    """A run of each text preset, named after it."""
    out = store.parent / request.param
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    hpdm(f"train --preset {request.param} --data {store} --out {out} --device cpu")
    yield out
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(run: Path):
    """The trained model with louder weights: after a few steps it hardly listens."""
    model = load_model(run)
    with torch.no_grad():
        model.family.text.project.weight.mul_(10.0)
        for parameter in model.family.denoiser.parameters():
            if parameter.abs().max() < 0.05:
                parameter.mul_(40.0)
    return model


def pixels(model, prompts, seeds=(0,), **kwargs) -> list[np.ndarray]:
    return [s.video for s in sample(model, seeds=list(seeds), prompts=prompts, device="cpu", **kwargs)]


def test_prompts_guidance_and_negatives_change_the_video(model) -> None:
    (plain,) = pixels(model, [PROMPT])
    assert not np.array_equal(plain, pixels(model, [OTHER])[0])
    assert not np.array_equal(plain, pixels(model, [])[0])
    assert np.array_equal(plain, pixels(model, [PROMPT], guidance=(1.0,))[0])
    (guided,) = pixels(model, [PROMPT], guidance=(4.0,))
    assert not np.array_equal(plain, guided)
    (away,) = pixels(model, [PROMPT], guidance=(4.0,), negative=OTHER)
    assert not np.array_equal(guided, away)
    # Away from the prompt itself leads nowhere, whatever the weight.
    (same,) = pixels(model, [PROMPT], guidance=(4.0,), negative=PROMPT)
    assert np.abs(same.astype(int) - plain).max() <= 1


def test_a_prompt_and_a_seed_make_the_same_pixels_whatever_is_beside_them(model) -> None:
    together = pixels(model, [PROMPT, OTHER], (0, 1, 2), batch=3)
    alone = [pixels(model, [(PROMPT, OTHER)[k % 2]], (k,))[0] for k in range(3)]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_the_command_takes_prompts(run: Path, tmp_path: Path) -> None:
    words = ["sample", "--ckpt", str(run), "--device", "cpu", "--format", "npz", "--guidance", "2"]
    hpdm([*words, "--prompt", PROMPT, "--prompt", OTHER, "--negative", "a ring", "--out", str(tmp_path)])
    one, two = (read_npz(tmp_path / f"seed_{k:06d}.npz")[0] for k in (0, 1))
    assert one.shape == two.shape
    assert one.shape[1:] == (32, 32, 3)
    assert not np.array_equal(one, two)


def test_training_on_text_resumes_bit_for_bit(run: Path, store: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    last = max((again / "checkpoints").iterdir())
    shutil.rmtree(last)
    hpdm(f"train --preset {run.name} --data {store} --out {again} --device cpu")
    assert state_hash(last) == state_hash(run / "checkpoints" / last.name)


@pytest.mark.parametrize("flag", ["--overlap full", "--window smooth", "--phases alternate"])
def test_a_flag_of_another_family_is_refused_with_those_of_this_one(run: Path, flag: str) -> None:
    result = CliRunner().invoke(app, ["sample", "--ckpt", str(run), "--dry-run", *flag.split()])
    assert result.exit_code == 2
    assert f"error: {flag.split()[0]} means nothing" in result.stderr
    assert "it takes --steps, --solver, --guidance" in result.stderr


def test_fast_takes_the_few_steps_of_the_preset(run: Path) -> None:
    words = f"sample --ckpt {run} --dry-run"
    assert "2 steps of dpmpp_2m" not in hpdm(words).stderr
    assert "2 steps of dpmpp_2m" in hpdm(f"{words} --fast").stderr


def test_what_is_advised_instead_of_fast_works(run: Path, tmp_path: Path) -> None:
    trained, path = load_model(run), tmp_path / "plain.safetensors"
    config = {**trained.header.config, "sample": {**trained.header.config["sample"], "fast": {}}}
    save_weights(path, trained.family.state_dict(), replace(trained.header, config=config))
    words = ["sample", "--ckpt", str(path), "--dry-run"]
    result = CliRunner().invoke(app, [*words, "--fast"])
    assert result.exit_code == 2
    hpdm([*words, *result.stderr.rpartition("for example ")[2].split()])
