"""The commands that the README promises, on the smallest preset: the main ones in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core import load_model, sample
from hpdm_core.data.store import VideoStore
from hpdm_core.data.synthetic import FPS
from hpdm_core.data.write import read_metadata, read_npz
from hpdm_core.families import shipped
from hpdm_core.families.weights import read_header, save_weights


def hpdm(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `hpdm ARGS` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "hpdm_cli", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """`here("train --preset x")` runs a command inside `folder` in this process, which has torch already."""
    monkeypatch.chdir(folder)

    def run(command: str) -> Result:
        return CliRunner().invoke(app, command.split())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the smoke preset was prepared for and trained."""
    folder = tmp_path_factory.mktemp("work")
    prepare = "prepare-data --source synthetic --num 8 --frames 8 --size 32x32 --out data/smoke --workers 1"
    for command in (prepare, "train --preset hpdm-smoke"):
        result = hpdm(folder, *command.split())
        assert result.returncode == 0, result.stderr
    return folder


def test_training_leaves_the_promised_run_directory(folder: Path) -> None:
    run = folder / "runs" / "hpdm-smoke"
    assert (run / "config.yaml").is_file()
    assert (run / "checkpoints" / "step_00000004" / "weights.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["videos_seen"] for line in steps] == [4, 8, 12, 16]
    assert all(np.isfinite(line["loss"]) and line["videos_per_s"] > 0 for line in steps)


def test_the_same_command_again_has_nothing_left_to_do(folder: Path, here) -> None:
    before = (folder / "runs/hpdm-smoke/log.jsonl").read_bytes()
    result = here("train --preset hpdm-smoke --device cpu")
    assert result.exit_code == 0, result.output
    assert (folder / "runs/hpdm-smoke/log.jsonl").read_bytes() == before


def test_the_runs_own_config_is_a_preset_file(here) -> None:
    result = here("train --preset runs/hpdm-smoke/config.yaml --data data/smoke --dry-run")
    assert result.exit_code == 0, result.output
    assert "max_steps: 4" in result.stdout


def test_samples_are_the_same_from_the_shell_and_from_python(folder: Path, here) -> None:
    command = "sample --ckpt runs/hpdm-smoke --seeds 0-1 --format npz,mp4 --out out"
    result = hpdm(folder, *command.split())
    assert result.returncode == 0, result.stderr
    videos = sample(load_model(folder / "runs" / "hpdm-smoke"), num=2, device="cpu")
    for seed, made in enumerate(videos):
        stored, _ = read_npz(folder / "out" / f"seed_{seed:06d}.npz")
        assert stored.shape == (8, 32, 32, 3)
        assert np.array_equal(stored, made.video)
        assert (folder / "out" / f"seed_{seed:06d}.mp4").stat().st_size > 0
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("seed_*")}
    assert here(command).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").glob("seed_*")} == stamps


def test_the_weights_know_the_rate_and_the_run_its_store(folder: Path, here) -> None:
    run = folder / "runs/hpdm-smoke"
    store = VideoStore.open(folder / "data/smoke")
    header = read_header(run / "checkpoints/step_00000004/weights.safetensors")
    assert header.fps == store.fps == FPS
    assert json.loads((run / "data.json").read_text()) == {
        "store": "../../data/smoke",
        "fingerprint": store.fingerprint,
    }
    for options, rate in (("", FPS), (" --fps 6", 6.0)):
        line = f"sample --ckpt runs/hpdm-smoke --num 1 --format npz --device cpu --out rate{rate:g}"
        assert here(line + options).exit_code == 0
        assert read_npz(folder / f"rate{rate:g}/seed_000000.npz")[1] == rate


def test_a_bar_in_python_counts_every_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(folder / "runs" / "hpdm-smoke")
    (made,) = sample(model, num=1, device="cpu", level=0, steps=[3], progress=True)
    assert made.video.shape == (2, 8, 8, 3)
    assert "3/3" in capsys.readouterr().err


def test_an_exported_model_is_half_the_size_and_can_be_the_model_in_the_box(
    folder: Path, here, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = here("export runs/hpdm-smoke --out shipped/small.safetensors")
    assert result.exit_code == 0, result.output
    assert "16 videos seen" in result.stdout
    whole, small = load_model(folder / "runs/hpdm-smoke"), load_model(folder / "shipped/small.safetensors")
    assert small.config == whole.config
    assert small.path.stat().st_size < 0.7 * whole.path.stat().st_size
    for name, tensor in whole.family.state_dict().items():
        half = small.family.state_dict()[name]
        assert half.dtype == tensor.dtype
        assert torch.equal(half, tensor.bfloat16().to(tensor.dtype))
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", folder / "shipped/small.safetensors")
    result = here("sample --num 1 --level 0 --format npz --device cpu --out boxed")
    assert result.exit_code == 0, result.output
    assert "the model in the box, small" in result.stderr
    made = sample(small, num=1, level=0, device="cpu")[0].video
    assert np.array_equal(read_npz(folder / "boxed/seed_000000.npz")[0], made)
    assert here("export runs/hpdm-smoke --out small.pt").exit_code == 2
    assert here("export runs/hpdm-smoke --out tuned.safetensors --set steps=[1] --set overlap=none").exit_code == 0
    tuned = load_model(folder / "tuned.safetensors")
    assert (tuned.config.sample.steps, tuned.config.sample.overlap) == ((1,), "none")
    assert tuned.config.model_copy(update={"sample": whole.config.sample}) == whole.config
    assert here("export runs/hpdm-smoke --out wrong.safetensors --set stepz=[1]").exit_code == 2
    assert not (folder / "wrong.safetensors").exists()
    refused = here(f"export runs/hpdm-smoke --out {'x' * 240}.safetensors")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: File name too long: xxx")
    before = small.path.read_bytes()
    assert here("export shipped/small.safetensors --out shipped/small.safetensors --dtype fp16").exit_code == 2
    assert small.path.read_bytes() == before


def test_a_model_of_a_later_version_is_refused_in_one_line(folder: Path, here) -> None:
    model = load_model(folder / "runs/hpdm-smoke")
    header = {**asdict(model.header), "flavour": "new"}
    save_file(dict(model.family.state_dict()), folder / "later.safetensors", {"hpdm": json.dumps(header)})
    result = here("sample --ckpt later.safetensors --dry-run")
    assert result.exit_code == 4, result.output
    assert "flavour" in result.stderr


def test_an_impossible_size_is_refused_with_a_hint(here) -> None:
    result = here("sample --ckpt runs/hpdm-smoke --res 33")
    assert result.exit_code == 2
    assert "hint: " in result.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("train --preset hpdm-smoke --set train.optimzer.lr=1", 2, "did you mean train.optimizer?"),
        ("train --preset hpdm-smok", 2, "did you mean hpdm-smoke?"),
        ("train --preset ucf101", 3, "hpdm prepare-data"),
        ("train --preset hpdm-smoke --data nowhere", 3, "nowhere"),
        ("train --preset hpdm-smoke --time-limit soon", 2, "11h50m"),
        ("sample", 4, "hpdm demo"),
        ("sample --ckpt nowhere", 4, "nowhere"),
        ("prepare-data nowhere --out new", 2, "nowhere"),
        ("prepare-data --source synthetic --size 64y --out new", 2, "288x512"),
    ],
)
def test_mistakes_exit_by_kind_and_say_what_to_do(
    command: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPDM_DATA", raising=False)
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", tmp_path / "none.safetensors")
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert result.stderr.splitlines()[-1].startswith(("error: ", "hint: "))


def test_a_format_can_be_added_to_samples_that_exist(folder: Path, here) -> None:
    line = "sample --ckpt runs/hpdm-smoke --num 1 --level 0 --out more --device cpu --format"
    for formats in ("png", "png,gif,mp4", "png,gif,mp4,npz"):
        result = here(f"{line} {formats}")
        assert result.exit_code == 0, result.output
    assert len(list((folder / "more/seed_000000").glob("*.png"))) == 2
    for suffix in ("gif", "mp4"):
        assert read_metadata(folder / f"more/seed_000000.{suffix}")["seed"] == 0
    assert read_npz(folder / "more/seed_000000.npz")[0].shape == (2, 8, 8, 3)


def test_samples_of_other_settings_are_not_mixed(here) -> None:
    line = "sample --ckpt runs/hpdm-smoke --num 1 --level 0 --out apart --device cpu --format npz"
    assert here(line).exit_code == 0
    result = here(f"{line} --steps 5 --window smooth")
    assert result.exit_code == 2
    assert "options.steps: [3, 2, 2] against [5], options.window: uniform against smooth\n" in result.stderr


def test_values_for_stages_that_there_are_not_are_said(here) -> None:
    line = "sample --ckpt runs/hpdm-smoke --dry-run"
    many = here(f"{line} --steps 3,2,2,9,8 --guidance 1,2,3")
    assert many.exit_code == 0
    assert "warning: --steps 9, 8 is not used: the last stage is level2\n" in many.stderr
    assert "--guidance" not in many.stderr
    assert "not used" not in here(f"{line} --fast --level 0").stderr
    assert "not used" not in here(f"{line} --set churn=3").stderr
    other = here(f"{line} --solver euler --set churn=3 --set eta=1").stderr
    assert "warning: churn is not used by euler\nwarning: eta is not used by euler\n" in other
    unreadable = here(f"{line} --guidance 4x")
    assert (unreadable.exit_code, "for example --guidance 4" in unreadable.stderr) == (2, True)


def test_lists_for_more_stages_than_the_model_has(folder: Path, here) -> None:
    export = "export runs/hpdm-smoke --out longer.safetensors --set"
    refused = here(f"{export} steps=[2,1,1,4]")
    assert refused.exit_code == 2
    said = "sample options: key sample.steps: 4 entries, of which this model's sampling reads 3, one a stage"
    assert refused.stderr == f"error: {said}\nhint: leave 4 away\n"
    assert not (folder / "longer.safetensors").exists()
    for change, code in (("sigma_min=[0.1,0.1,0.1,0.1]", 2), ("solver=[heun,euler,euler]", 0), ("steps=[2]", 0)):
        assert here(f"{export} {change}").exit_code == code, change
    # A file may have longer lists all the same, from the preset of a larger model: they are said and harmless.
    file = folder / "longer.safetensors"
    header = read_header(file)
    header.config["sample"] |= {"steps": [2, 1, 1, 4], "sigma_min": [0.1, 0.1, 0.1, 0.2]}
    save_weights(file, load_file(file), header)
    line = "sample --ckpt longer.safetensors --dry-run --level 0"
    remark = "of each list this model's sampling reads 3 at most, one a stage; not used: "
    assert f"{remark}steps 4; sigma_min 0.2\n" in here(line).stderr
    assert f"{remark}sigma_min 0.2\n" in here(f"{line} --steps 2").stderr
    assert here("export longer.safetensors --out copy.safetensors --set churn=0").exit_code == 0


def test_a_place_that_cannot_be_written_is_one_line(folder: Path, here) -> None:
    (folder / "file").write_text("in the way")
    line = "sample --ckpt runs/hpdm-smoke --num 1 --level 0 --device cpu --out"
    for out, said, remedy in (
        ("file", "file is a file", "--out names a folder"),
        ("file/samples", "cannot write to file/samples: Not a directory", "choose a folder that may be written"),
    ):
        result = here(f"{line} {out}")
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-2:] == [f"error: {said}", f"hint: {remedy}"]
    assert (folder / "file").read_text() == "in the way"


def test_the_first_frames_are_those_of_the_whole_video(folder: Path, here) -> None:
    for out, extra in (("whole", ""), ("first", " --frames 2")):
        result = here(f"sample --ckpt runs/hpdm-smoke --format npz --out {out}{extra}")
        assert result.exit_code == 0, result.output
    whole, first = (read_npz(folder / out / "seed_000000.npz")[0] for out in ("whole", "first"))
    assert first.shape[0] == 2
    assert np.array_equal(first, whole[:2])


def test_more_frames_than_the_model_makes_are_refused_with_its_lengths(here) -> None:
    result = here("sample --ckpt runs/hpdm-smoke --frames 100 --dry-run")
    assert result.exit_code == 2
    assert "8 frames of 32x32" in result.output


def test_fast_takes_fewer_calls_and_a_budget_needs_a_table(here) -> None:
    slow, fast = (here(f"sample --ckpt runs/hpdm-smoke --dry-run{flag}").output for flag in ("", " --fast"))
    assert "3 steps of heun" in slow
    assert "1 steps of heun" in fast
    assert here("sample --ckpt runs/hpdm-smoke --fast --steps 2 --dry-run").output.count("2 steps of") == 3
    refused = here("sample --ckpt runs/hpdm-smoke --budget 5s")
    assert refused.exit_code == 2
    assert "no sampling settings were measured" in refused.output
    assert here("sample --ckpt runs/hpdm-smoke --budget 5s --fast").exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [("--device tpu", "tpu"), ("--guidance nan", "finite"), ("--set churn=.inf", "finite")],
)
def test_what_cannot_be_sampled_claims_no_folder(here, folder: Path, options: str, message: str) -> None:
    result = here(f"sample --ckpt runs/hpdm-smoke --num 1 --out unclaimed {options}")
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert not (folder / "unclaimed").exists()


def test_a_folder_holds_samples_of_one_frame_rate(here) -> None:
    line = "sample --ckpt runs/hpdm-smoke --num 1 --level 0 --out rates --device cpu --format gif"
    assert here(f"{line} --fps 10").exit_code == 0
    other = here(f"{line} --fps 30")
    assert (other.exit_code, "made otherwise: fps: " in other.stderr) == (2, True)


def test_weights_that_make_no_numbers_are_said_and_not_shown_black(here, folder: Path) -> None:
    whole = next((folder / "runs/hpdm-smoke/checkpoints").glob("*/weights.safetensors"))
    damaged = folder / "damaged.safetensors"
    content = bytearray(whole.read_bytes())
    content[-4000:] = b"\xff" * 4000
    damaged.write_bytes(content)
    result = here(f"sample --ckpt {damaged} --num 1 --out black --device cpu")
    assert result.exit_code != 0
    assert "not finite numbers" in result.stderr
    assert not list((folder / "black").glob("seed_*"))


def test_a_store_is_no_place_for_a_run(here, folder: Path) -> None:
    result = here("train --preset hpdm-smoke --data data/smoke --out data/smoke")
    assert (result.exit_code, "is a store of clips" in result.stderr) == (2, True)
    assert not (folder / "data/smoke/config.yaml").exists()


def test_options_of_another_source_are_said(here) -> None:
    line = "prepare-data --source synthetic --num 2 --frames 4 --size 16x16 --out data/none --dry-run"
    assert "not used" not in here(f"{line} --style plain --split train").stderr
    said = here(f"{line} --caption-column x --fps 5").stderr
    for flag in ("--caption-column", "--fps"):
        assert f"warning: {flag} is not used by --source synthetic\n" in said


def test_an_empty_output_is_made_again(folder: Path, here) -> None:
    line = "sample --ckpt runs/hpdm-smoke --num 2 --level 0 --out empty --device cpu --format npz,png"
    assert here(line).exit_code == 0
    whole = (folder / "empty/seed_000001.npz").read_bytes()
    (folder / "empty/seed_000001.npz").write_bytes(b"")
    again = here(line)
    assert again.exit_code == 0, again.output
    assert "1 of 2 videos exist in empty and are kept\n" in again.stderr
    assert (folder / "empty/seed_000001.npz").read_bytes() == whole
    for frame in (folder / "empty/seed_000000").iterdir():
        frame.unlink()
    assert here(line).exit_code == 0
    assert len(list((folder / "empty/seed_000000").glob("*.png"))) == 2
    assert "2 of 2 videos exist in empty and are kept\n" in here(line).stderr
