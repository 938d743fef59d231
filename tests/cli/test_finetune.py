"""`hpdm finetune-hires` as typed: the plan, a run that samples, continuing, exit codes."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hpdm_cli.app import app
from hpdm_core.data.write import read_npz
from hpdm_core.families.registry import load_run_config
from hpdm_core.families.weights import find_weights, read_header
from hpdm_core.training.run import train
from tests.support.growing import ONE, THREE, TWO, make_store, preset_file


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/smoke, presets one, two and three, and a trained runs/one."""
    folder = tmp_path_factory.mktemp("finetune")
    make_store(folder / "data" / "smoke")
    for name, model in (("one", ONE), ("two", TWO), ("three", THREE)):
        preset_file(folder, name, model)
    train(load_run_config(folder / "one.yaml"), folder / "data/smoke", folder / "runs/one", device="cpu")
    return folder


@pytest.fixture
def hpdm(place, monkeypatch):
    """Run the command line in `place` without starting a process."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("HPDM_DATA", raising=False)
    return lambda line: CliRunner().invoke(app, line.split())


def test_a_dry_run_shows_what_is_reused_new_and_skipped_and_writes_nothing(hpdm, place):
    done = hpdm("finetune-hires --from runs/one --preset three.yaml --out dry --dry-run")
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in (
        "base: runs/one/checkpoints/step_00000004/weights.safetensors, step 4, sha256",
        "level 0 reused 2x8x8, blocks 1 to 4",
        "level 1 new 4x16x16, blocks 2 to 4, skips 1",
        "level 2 new 8x32x32, block 4, skips 3",
        "block 1 reused 1 of 3 levels, no fusion: level 0 alone",
        "block 2 reused 2 of 3 levels, its fusion is new",
        "new parameters: 6,592",
        "denoiser.stem.level 64",
        "denoiser.blocks.3.fusion 2,176",
        "optimiser state: kept for",
        "cost of one training video: 4 block evaluations before, 8 after (x2)",
        "cost of sampling one video before: 2x8x8, 20 block evaluations (level0 20)",
        "cost of sampling one video after: 8x32x32, ",
        "video: [8, 32, 32]",
        "12 clips kept",
    ):
        assert words in text, words
    assert not (place / "dry").exists()


def test_it_trains_continues_and_samples(hpdm, place):
    line = "finetune-hires --from runs/one --preset two.yaml --device cpu"
    first = hpdm(f"{line} --set train.max_steps=2")
    assert first.exit_code == 0, first.stderr
    assert "level 1" in first.stderr
    assert "next: hpdm sample --ckpt runs/two" in first.stderr
    again = hpdm(line)
    assert again.exit_code == 0, again.stderr
    log = [json.loads(text) for text in (place / "runs/two/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert set(log[0]["loss_levels"]) == {"level0", "level1"}
    # From two levels to three, and to videos.
    assert hpdm("finetune-hires --from runs/two --preset three.yaml --device cpu").exit_code == 0
    chain = [read_header(find_weights(place / "runs" / name)).base_sha256 for name in ("one", "two", "three")]
    assert chain[0] == ""
    assert len(set(chain)) == 3
    made = hpdm("sample --ckpt runs/three --num 1 --format npz --out out --device cpu")
    assert made.exit_code == 0, made.stderr
    video, _ = read_npz(place / "out" / "seed_000000.npz")
    assert video.shape == (8, 32, 32, 3)
    assert np.unique(video).size > 10


def test_res_and_frames_choose_the_target(hpdm):
    done = hpdm("finetune-hires --from runs/one --preset three.yaml --res 16x16 --frames 4 --dry-run")
    assert done.exit_code == 0, done.stderr
    assert "level 1" in done.stdout
    assert "level 2" not in done.stdout


def test_more_levels_than_the_presets_are_set_beside_res(hpdm):
    """Only together do they make a valid model: more levels, and what the blocks do with them."""
    line = "finetune-hires --from runs/one --preset three.yaml --res 64x64 --dry-run --set data.dataset=none --set"
    done = hpdm(f"{line} model.levels_per_block=[1,2,2,4]")
    assert done.exit_code == 3, done.stderr  # after the plan: there is no such store
    assert "video: [8, 64, 64]" in done.stdout
    assert "level 3" in done.stdout
    few = hpdm(f"{line} model.levels_per_block=[1,1,2,3]")
    assert few.exit_code == 2
    assert "videos of 8x64x64 take 4 levels, and model.levels_per_block ends with 3\n" in few.stderr
    assert "hint: say how many levels each block processes, 4 in the last, for example --set" in few.stderr
    falling = hpdm(f"{line} model.levels_per_block=[2,1,4,4]")
    assert falling.exit_code == 2
    assert "levels_per_block [2, 1, 4, 4] must not decrease" in falling.stderr
    for wrong in ("model.levels_per_block=x", "model.patch=[2,8]", "model.patch=[0,8,8]"):
        done = hpdm(f"{line} {wrong}")
        assert done.exit_code == 2, wrong
        assert f"error: --set {wrong}: key model" in done.stderr


def test_a_bare_weights_file_says_that_it_holds_no_optimiser_state(hpdm, place):
    file = find_weights(place / "runs/one").rename(place / "bare.safetensors")
    try:
        done = hpdm("finetune-hires --from bare.safetensors --preset three.yaml --dry-run")
    finally:
        file.rename(place / "runs/one/checkpoints/step_00000004/weights.safetensors")
    assert done.exit_code == 0, done.stderr
    assert "optimiser state: none, a weights file holds none" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("--from runs/one --preset three.yaml --res 30x30", 2, "nearest possible video is 8x32x32"),
        ("--from runs/one --preset three.yaml --res 64x64 --frames 16", 2, "--set model.levels_per_block=[1,2,2,4]"),
        ("--from runs/one --preset one.yaml", 2, "the next possible video is 4x16x16"),
        ("--from runs/one --preset pvdm-smoke --res 64x64", 2, "leave --res and --frames away"),
        ("--from runs/one --preset no-such", 2, "no-such"),
        ("--from runs/one --preset three.yaml --data nowhere", 3, "nowhere"),
        ("--from nowhere --preset three.yaml", 4, "nowhere"),
        ("--from one.yaml --preset three.yaml", 4, "not a readable safetensors file"),
        ("--from runs/one --preset pvdm-smoke", 4, "take a preset of the base's family"),
        ("--from runs/one --preset three.yaml --set model.token_dim=64", 4, "token_dim: 32 there, 64 here"),
        ("--from runs/one --preset three.yaml --out runs/one", 4, "another configuration"),
        ("--preset three.yaml", 2, "--from"),
    ],
)
def test_mistakes_have_their_exit_codes(hpdm, args, code, words):
    done = hpdm(f"finetune-hires --device cpu {args}")
    assert done.exit_code == code, done.stderr
    assert words in done.stderr
