"""`hpdm eval-fvd`, `compare` and `weights` as scripts see them: exit codes, one-line output, JSON."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core import load_model, sample
from hpdm_core.config.load import plain_config
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.weights import WeightsHeader, save_weights
from hpdm_core.metrics.random_weights import random_i3d_weights

RANDOM_SHA256 = "2889c9482c89aa1491900bdf781cc0948704ce384aab5dbf08cd52ce79702b98"
TOY = "tests.support.toy_detector:build"


def hpdm(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def score(real: object, fake: object, *args: object) -> Result:
    return hpdm("eval-fvd", "--real", real, "--fake", fake, "--detector", TOY, "--n", 12, *args)


def videos(seed: int, count: int = 12, frames: int = 16, size: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, frames, size, size, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HPDM_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    np.savez(tmp_path / "real.npz", videos(0, frames=20))
    return tmp_path / "real.npz"


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    np.savez(tmp_path / "fake.npz", videos(1) // 2)
    return tmp_path / "fake.npz"


def test_one_line_per_metric_and_the_whole_result_as_json(real: Path, fake: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.json"
    done = score(real, fake, "--metrics", "fvd,kvd,is,frame,motion", "--json", out)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("FVD[Toy distance] ")
    result = json.loads(out.read_text())
    assert all(line.endswith(f"[{result['protocol_hash']}]") for line in lines)
    assert result["protocol"]["clip"] == {"frames": 16, "size": [12, 12], "fit": "crop"}
    entry = result["metrics"]["fvd"]
    assert entry["n_real"] == entry["n_fake"] == 12
    assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
    assert result["real"]["clips"] == 12
    assert any("not FVD" in warning for warning in result["warnings"])
    assert any("compare only with results of the same N" in warning for warning in result["warnings"])
    assert "warning: " in done.stderr


def test_json_on_standard_output_stands_alone(
    real: Path, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = score(real, fake, "--json", "-", "--max-fvd", "1e-9")
    assert done.exit_code == 6
    assert json.loads(done.stdout)["metrics"]["fvd"]["n_real"] == 12
    assert "warning: " in done.stderr
    assert not (tmp_path / "-").exists()


@pytest.mark.slow
def test_random_i3d_is_deterministic_and_labelled(tmp_path: Path) -> None:
    values = []
    for run in range(2):
        np.savez(tmp_path / "a.npz", videos(0, 2, frames=9))
        np.savez(tmp_path / "b.npz", videos(1, 2, frames=9))
        args = ["--real", tmp_path / "a.npz", "--fake", tmp_path / "b.npz", "--protocol", "smoke", "--n", 2]
        done = hpdm("eval-fvd", *args, "--no-cache", "--batch", run + 1, "--json", tmp_path / "out.json")
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("rFVD ")
        values.append(json.loads((tmp_path / "out.json").read_text())["metrics"]["fvd"])
    assert values[0]["label"] == "rFVD"
    assert values[0]["value"] == pytest.approx(values[1]["value"], rel=1e-4)


def test_thresholds_exit_6_after_writing_the_result(real: Path, fake: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = score(real, fake, "--max-fvd", "1e-9", "--min-is", "50", "--set", "inception.splits=1", "--json", out)
    assert done.exit_code == 6
    value = json.loads(out.read_text())["metrics"]["fvd"]["value"]
    assert f"{value:.6g} is above the threshold 1e-09" in done.stderr
    assert "is below the threshold 50" in done.stderr
    assert score(real, fake, "--max-fvd", "1e9").exit_code == 0


def test_missing_weights_exit_5_with_the_remedy(real: Path, fake: Path) -> None:
    done = hpdm("eval-fvd", "--real", real, "--fake", fake)
    assert done.exit_code == 5
    assert "rgb_scratch" in done.stderr
    assert "--weights FILE" in done.stderr
    assert "--detector random-i3d" in done.stderr
    done = hpdm("eval-fvd", "--fake", fake, "--protocol", "ucf_is10k")
    assert done.exit_code == 5
    assert "--c3d-weights FILE" in done.stderr
    done = score(real, fake, "--metrics", "clipsim", "--prompts", _captions(fake.parent))
    assert done.exit_code == 5
    assert "--clip-weights FILE" in done.stderr


def _captions(folder: Path) -> Path:
    (folder / "captions.txt").write_text("a cat\n" * 12)
    return folder / "captions.txt"


def test_bad_data_exits_3_and_says_which(real: Path, fake: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "short.npz", videos(1, frames=10))
    done = score(real, tmp_path / "short.npz")
    assert done.exit_code == 3
    assert "has 10 frames; protocol fvd2048_16f" in done.stderr
    assert "needs 16" in done.stderr
    done = hpdm("eval-fvd", "--real", real, "--fake", fake, "--detector", TOY)
    assert done.exit_code == 3
    assert "takes 2048 generated videos; there are 12" in done.stderr
    done = score(tmp_path / "short.npz", fake)
    assert done.exit_code == 3
    assert "none of the 12 real videos has the 16 frames" in done.stderr
    (tmp_path / "mixed").mkdir()
    for i, size in enumerate((12, 12, 16)):
        np.save(tmp_path / "mixed" / f"{i}.npy", videos(i, 1, size=size)[0])
    done = hpdm("eval-fvd", "--real", real, "--fake", tmp_path / "mixed", "--detector", TOY, "--n", 3)
    assert done.exit_code == 3
    assert "mixed sizes: 2.npy is 16x16" in done.stderr
    assert score(tmp_path / "absent", fake).exit_code == 3


def test_too_few_clips_are_told_before_any_is_read(real: Path, fake: Path, tmp_path: Path) -> None:
    done = score(real, fake, "--metrics", "fvd,is", "--set", "inception.splits=13")
    assert (done.exit_code, "in 13 splits needs at least 13 samples, got 12" in done.stderr) == (3, True)
    assert '"event"' not in done.stderr
    np.savez(tmp_path / "one.npz", videos(1, 1))
    done = score(real, tmp_path / "one.npz")
    assert (done.exit_code, "generate 11 more" in done.stderr) == (3, True)
    assert "--n 1\n" not in done.stderr


def test_progress_of_each_side_ends_before_the_next_and_knows_its_total(real: Path, fake: Path) -> None:
    done = score(real, fake, "--batch", 5)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"event"')]
    seen = [(line["event"], line["what"], line["done"], line["total"]) for line in lines]
    assert seen == [
        ("progress", "generated clips", 0, 12),
        ("progress_end", "generated clips", 12, 12),
        ("progress", "real clips", 0, 12),
        ("progress_end", "real clips", 12, 12),
    ]


def test_what_is_given_and_not_read_is_said(real: Path, fake: Path) -> None:
    given = ["--c3d-weights", "c3d.pt", "--clip-weights", "clip.pt", "--tile", "16x6x6", "--prompts", "captions.txt"]
    done = score(real, fake, *given)
    assert done.exit_code == 0, done.output
    for name in given[::2]:
        assert f"warning: {name} is not read" in done.stderr
    assert "warning: --weights is not read" in _seam(fake, "--weights", "i3d.pt").stderr
    assert "not read" not in _seam(fake).stderr
    assert "not read" not in score(real, fake, "--weights", "i3d.pt").stderr


def _seam(fake: Path, *args: str) -> Result:
    return hpdm("eval-fvd", "--fake", fake, "--metrics", "seam", "--tile", "16x6x6", "--n", 12, *args)


def test_wrong_usage_exits_2(real: Path, fake: Path) -> None:
    for args, message in (
        (["--metrics", "fvd,nice"], "unknown metric nice"),
        (["--protocol", "fvd2048"], "no protocol is named"),
        (["--set", "clip.framez=3"], "did you mean clip.frames"),
        (["--set", "clip.frames=1"], "needs clips of 2 frames"),
        (["--metrics", "seam"], "needs --tile"),
        (["--metrics", "seam", "--tile", "3x3"], "cannot read --tile"),
        (["--detector", "tests.support.toy_detector:not_a_detector"], "did not return a detector"),
        (["--detector", "tests.support.toy_detector:absent"], "cannot import detector"),
        (["--detector", "vgg"], "unknown detector"),
    ):
        done = score(real, fake, *args)
        assert (done.exit_code, message in done.stderr) == (2, True), (args, done.stderr)
    assert hpdm("eval-fvd", "--real", real).exit_code == 2
    done = hpdm("eval-fvd", "--fake", fake, "--detector", TOY, "--n", 12)
    assert (done.exit_code, "give --real" in done.stderr) == (2, True)


def test_seams_need_no_network_and_no_real_videos(fake: Path, tmp_path: Path) -> None:
    done = _seam(fake)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("seam ratio ")


def test_real_features_are_cached_verified_and_repaired(real: Path, fake: Path, tmp_path: Path) -> None:
    first = score(real, fake)
    (file,) = (tmp_path / "cache" / "features").iterdir()
    stamp = file.stat().st_mtime_ns
    assert score(real, fake).stdout == first.stdout
    assert file.stat().st_mtime_ns == stamp
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(bytes(damaged))
    assert score(real, fake).stdout == first.stdout
    assert file.read_bytes() != bytes(damaged)
    score(real, fake, "--set", "real.stride=1", "--set", "clip.frames=15")
    assert len(list(file.parent.iterdir())) == 2


def test_a_statistics_file_stands_for_the_real_videos(real: Path, fake: Path, tmp_path: Path) -> None:
    stats = tmp_path / "real.safetensors"
    first = score(real, fake, "--metrics", "fvd,kvd", "--save-stats", stats, "--no-cache")
    assert first.exit_code == 0, first.output
    assert not (tmp_path / "cache").exists()
    real.unlink()
    assert score(stats, fake, "--metrics", "fvd,kvd").stdout == first.stdout
    other = score(stats, fake, "--set", "real.seed=1")
    assert other.exit_code == 3
    assert "real.seed: 0 against 1" in other.stderr
    views = score(stats, fake, "--metrics", "motion")
    assert (views.exit_code, "lacks the shuffled, static features" in views.stderr) == (3, True)


def test_dry_run_prints_the_protocol(real: Path) -> None:
    done = hpdm("eval-fvd", "--protocol", "fvd_tf", "--n", 64, "--dry-run")
    assert done.exit_code == 0
    assert "resize: tf1_legacy" in done.stdout
    assert "count: 64" in done.stdout


def test_n_limits_both_sides_of_a_protocol_that_takes_all_real_clips(fake: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", videos(0, 20, frames=20))
    out = tmp_path / "out.json"
    done = score(tmp_path / "many.npz", fake, "--protocol", "fvd512", "--json", out)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert (result["metrics"]["fvd"]["n_real"], result["metrics"]["fvd"]["n_fake"]) == (12, 12)
    assert result["protocol"]["real"]["select"] == "random"


def test_an_absent_device_is_named(real: Path, fake: Path) -> None:
    done = score(real, fake, "--device", "cuda:99")
    assert (done.exit_code, "device cuda:99 was asked for" in done.stderr) == (2, True)
    done = score(real, fake, "--device", "gpu")
    assert (done.exit_code, "no device is called 'gpu'" in done.stderr) == (2, True)


def test_an_unwritable_result_is_refused_before_the_work(real: Path, fake: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = score(real, fake, "--json", tmp_path / "file" / "out.json")
    assert (done.exit_code, "--json: cannot write" in done.stderr) == (2, True)
    assert not (tmp_path / "cache").exists()


def test_compare_refuses_seams_of_other_tiles(fake: Path, tmp_path: Path) -> None:
    for name, tile in (("a", "16x6x6"), ("b", "16x4x4")):
        args = ("--metrics", "seam", "--tile", tile, "--n", 12, "--json", tmp_path / f"{name}.json")
        assert hpdm("eval-fvd", "--fake", fake, *args).exit_code == 0
    refused = hpdm("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert refused.exit_code == 2
    assert "observers.seam.tile: [16, 6, 6] against [16, 4, 4]" in refused.stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained model of three levels: 2 frames of 8x8, 4 of 16x16, 8 of 32x32."""
    config = load_run_config("hpdm-smoke", ["model.condition.num_classes=2"])
    torch.manual_seed(0)
    tensors = build_family(config).state_dict()
    save_weights(tmp_path / "model.safetensors", tensors, WeightsHeader(plain_config(config), classes=["a", "b"]))
    return tmp_path / "model.safetensors"


def test_a_level_is_scored_against_real_clips_of_its_size_and_stride(checkpoint: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", videos(0, 3, frames=8, size=32))
    out = tmp_path / "out.json"
    args = ("--real", tmp_path / "real.npz", "--detector", TOY, "--n", 3, "--json", out, "--set", "clip.frames=4")
    done = hpdm("eval-fvd", "--fake", checkpoint, "--level", 1, *args)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["protocol"]["clip"]["size"] == result["fake"]["size"] == [16, 16]
    assert result["protocol"]["real"]["stride"] == 2
    assert "(level 1)" in result["protocol"]["name"]
    assert result["fake"]["sample_options"]["level"] == 1
    short = hpdm("eval-fvd", "--fake", checkpoint, "--level", 0, *args)
    assert (short.exit_code, "makes videos of 2 frames" in short.stderr) == (3, True)
    wrong = hpdm("eval-fvd", "--fake", checkpoint, "--level", 3, *args)
    assert (wrong.exit_code, "level 3 does not exist" in wrong.stderr) == (2, True)
    wrong = hpdm("eval-fvd", "--fake", tmp_path / "real.npz", "--level", 0, *args)
    assert (wrong.exit_code, "--level needs a model" in wrong.stderr) == (2, True)


def test_a_checkpoint_makes_only_the_frames_that_are_scored(checkpoint: Path, tmp_path: Path) -> None:
    """Two of eight frames, with the score that the first two frames of whole videos get."""
    np.savez(tmp_path / "real.npz", videos(0, 3, frames=8, size=32))
    whole = sample(load_model(checkpoint), num=3, device="cpu")
    np.savez(tmp_path / "whole.npz", np.stack([item.video for item in whole]))
    results = []
    for number, fake in enumerate((checkpoint, tmp_path / "whole.npz")):
        out = tmp_path / f"{number}.json"
        args = ("--detector", TOY, "--n", 3, "--json", out, "--set", "clip.frames=2")
        done = hpdm("eval-fvd", "--real", tmp_path / "real.npz", "--fake", fake, *args)
        assert done.exit_code == 0, done.output
        results.append(json.loads(out.read_text()))
    assert results[0]["fake"]["frames"] == 2
    assert results[0]["metrics"]["fvd"]["value"] == results[1]["metrics"]["fvd"]["value"]


def test_compare_refuses_what_what_was_not_measured_alike(real: Path, fake: Path, tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / f"{name}.json" for name in "abcd")
    score(real, fake, "--json", a)
    score(real, fake, "--json", b, "--metrics", "fvd,kvd")
    score(real, fake, "--json", c, "--set", "statistics.ddof=1")
    np.savez(tmp_path / "other.npz", videos(5, frames=20))
    score(tmp_path / "other.npz", fake, "--json", d)
    same = hpdm("compare", a, b)
    assert same.exit_code == 0, same.output
    rows = [line.split("\t") for line in same.stdout.splitlines()]
    assert [row[0] for row in rows] == ["result", "a", "b"]
    assert rows[1][1] == rows[2][1]
    assert (rows[1][2], rows[2][2] != "-") == ("-", True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.json").write_bytes(a.read_bytes())
    namesakes = hpdm("compare", a, tmp_path / "run" / "a.json").stdout.splitlines()
    assert [line.split("\t")[0] for line in namesakes[1:]] == [str(a), str(tmp_path / "run" / "a.json")]
    refused = hpdm("compare", a, b, c, d)
    assert refused.exit_code == 2
    assert "a.json against c.json: protocol.statistics.ddof: 0 against 1" in refused.stderr
    assert "a.json against d.json: real_data" in refused.stderr
    assert "b.json" not in refused.stderr
    assert hpdm("compare", a, c, "--anyway").exit_code == 0
    (tmp_path / "e.json").write_text("{}")
    assert hpdm("compare", a, tmp_path / "e.json").exit_code == 2
    assert hpdm("compare", a, tmp_path / "absent.json").exit_code == 2


def test_weights_list_check_and_convert(tmp_path: Path) -> None:
    listed = hpdm("weights", "list")
    assert listed.exit_code == 0
    for word in ("rgb_scratch", "Apache-2.0", "--weights FILE", "C3D", "CLIP"):
        assert word in listed.stdout
    torch.save({f"module.{k}": v for k, v in random_i3d_weights().items()}, tmp_path / "net.pt")
    checked = hpdm("weights", "check", tmp_path / "net.pt")
    assert checked.exit_code == 0, checked.output
    assert "unrecognised" in checked.stdout
    assert "for FVD as the literature reports it: no" in checked.stdout
    converted = hpdm("weights", "convert", tmp_path / "net.pt")
    assert converted.exit_code == 0, converted.output
    assert hpdm("weights", "convert", tmp_path / "net.pt").exit_code == 2
    again = hpdm("weights", "check", tmp_path / "net.safetensors")
    assert again.stdout.splitlines()[2] == checked.stdout.splitlines()[2]
    assert hpdm("weights", "check", tmp_path / "absent.pt").exit_code == 5
    (tmp_path / "text.pt").write_text("hello")
    assert hpdm("weights", "check", tmp_path / "text.pt").exit_code == 4


def test_torchscript_is_opened_only_on_request(tmp_path: Path) -> None:
    root = torch.nn.Module()
    for key, value in random_i3d_weights().items():
        *parents, leaf = key.split(".")
        node = root
        for name in parents:
            if not hasattr(node, name):
                node.add_module(name, torch.nn.Module())
            node = getattr(node, name)
        node.register_buffer(leaf, value)
    file, target = tmp_path / "i3d.pt", tmp_path / "i3d.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated; the files in circulation stay
        torch.jit.script(root).save(str(file))
    refused = hpdm("weights", "convert", file, target)
    assert refused.exit_code == 4
    assert "--torchscript" in refused.stderr
    done = hpdm("weights", "convert", file, target, "--torchscript")
    assert done.exit_code == 0, done.output
    assert RANDOM_SHA256 in hpdm("weights", "check", target).stdout
