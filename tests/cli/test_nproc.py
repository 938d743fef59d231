"""`--nproc 2` of `sample` and `eval-fvd`: the files and numbers of one process, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from hpdm_cli import cmd_sample
from hpdm_cli.app import app
from hpdm_cli.launch import command_line
from hpdm_core.config.load import plain_config
from hpdm_core.data.write import read_npz
from hpdm_core.errors import ConfigError
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.weights import WeightsHeader, save_weights

TOY = "tests.support.toy_detector:build"
NUM = 11


def hpdm(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """`hpdm ARGS` in a process of its own, as torchrun's agent needs."""
    return subprocess.run(
        [sys.executable, "-m", "hpdm_cli", *map(str, args)],
        cwd=folder,
        env={
            **os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1", "HPDM_CACHE": str(folder / "cache"), "HPDM_WEIGHTS": str(folder / "weights"),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model and two sets of videos, one of them with videos that are too short."""
    folder = tmp_path_factory.mktemp("work")
    config = load_run_config("hpdm-smoke", ["model.condition.num_classes=2"])
    torch.manual_seed(0)
    header = WeightsHeader(plain_config(config), classes=["a", "b"])
    save_weights(folder / "model.safetensors", build_family(config).state_dict(), header)
    rng = np.random.default_rng(0)
    (folder / "real").mkdir()
    for index in range(NUM + 2):
        frames = 8 if index in (2, 5) else 20
        np.save(folder / f"real/{index:02d}.npy", rng.integers(0, 256, (frames, 12, 12, 3), dtype=np.uint8))
    np.savez(folder / "fake.npz", rng.integers(0, 128, (NUM, 16, 12, 12, 3), dtype=np.uint8))
    return folder


def test_samples_of_two_processes_are_those_of_one(folder: Path) -> None:
    line = ("sample", "--ckpt", "model.safetensors", "--seeds", "3-7", "--level", 1, "--device", "cpu")
    line += ("--format", "npz")
    one, two = hpdm(folder, *line, "--out", "one"), hpdm(folder, *line, "--out", "two", "--nproc", 2)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert two.stdout == one.stdout.replace(" one", " two")
    names = sorted(path.name for path in (folder / "one").iterdir())
    assert names == sorted(path.name for path in (folder / "two").iterdir())
    assert names[0] == "samples.json"
    assert len(names) == 6
    assert (folder / "one/samples.json").read_bytes() == (folder / "two/samples.json").read_bytes()
    for name in names[1:]:  # after samples.json
        (a, _), (b, _) = read_npz(folder / "one" / name), read_npz(folder / "two" / name)
        assert np.array_equal(a, b)
    (folder / "two/seed_000005.npz").unlink()
    again = hpdm(folder, *line, "--out", "two", "--nproc", 2)
    assert again.returncode == 0, again.stderr
    assert (folder / "two/seed_000005.npz").is_file()
    said = again.stderr.splitlines()
    assert said.count("4 of 5 videos exist in two and are kept") == 1
    assert sum(text.startswith("5 videos of ") for text in said) == 1
    assert not [text for text in said if "videos exist" in text and "4 of 5" not in text]


def result(folder: Path, name: str, *args: object) -> dict:
    line = ("eval-fvd", "--real", "real", "--detector", TOY, "--n", NUM, "--batch", 2, "--device", "cpu")
    done = hpdm(folder, *line, "--json", name, *args)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(json.loads((folder / name).read_text())["metrics"])
    return json.loads((folder / name).read_text())


def test_scores_of_two_processes_are_those_of_one(folder: Path) -> None:
    args = ("--fake", "fake.npz", "--metrics", "fvd,kvd,is,frame,motion,seam", "--tile", "16x6x6")
    one = result(folder, "one.json", *args, "--no-cache")
    assert result(folder, "two.json", *args, "--nproc", 2) == one
    cached = result(folder, "three.json", *args, "--nproc", 2)
    assert len(list((folder / "cache/features").iterdir())) == 1
    assert cached == one
    assert one["real"]["too_short"] == 2


def test_a_model_is_sampled_by_all_ranks(folder: Path) -> None:
    args = ("--fake", "model.safetensors", "--level", 1, "--set", "clip.frames=4", "--no-cache")
    one = result(folder, "one.json", *args)
    assert result(folder, "two.json", *args, "--nproc", 2) == one


def test_mistakes_are_said_once_and_thresholds_keep_their_code(folder: Path) -> None:
    line = ("eval-fvd", "--real", "real", "--fake", "fake.npz", "--n", NUM, "--device", "cpu", "--nproc", 2)
    missing = hpdm(folder, *line)
    assert missing.returncode == 5
    assert missing.stderr.count("error") == 1
    failed = hpdm(folder, *line, "--detector", TOY, "--max-fvd", 0)
    assert failed.returncode == 6
    assert failed.stderr.count("is above the threshold 0") == 1
    assert failed.stderr.count("changes protocol") == 1
    watch = hpdm(folder, "eval-fvd", "--watch", folder, "--nproc", 2)
    assert (watch.returncode, "takes no --nproc" in watch.stderr) == (2, True)


def test_the_command_line_of_a_rank_repeats_what_was_given() -> None:
    app, seen = typer.Typer(), []

    @app.command()
    def work(
        context: typer.Context,
        place: Path,
        nproc: Annotated[int, typer.Option("--nproc")] = 1,
        text: Annotated[list[str] | None, typer.Option("--text")] = None,
        quick: Annotated[bool, typer.Option("--quick")] = False,
        rate: Annotated[float, typer.Option("--rate")] = 2.0,
        other: Annotated[str | None, typer.Option("--other")] = None,
    ) -> None:
        seen.extend(command_line(context))

    line = ["a b", "--nproc", "2", "--text", "-x", "--text", "y z", "--quick", "--rate", "3"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert seen[1:] == ["a b", "--text", "-x", "--text", "y z", "--quick", "--rate", "3.0"]


def test_ranks_are_given_what_a_budget_stands_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each would measure another pace, choose another setting, and refuse the folder of the first."""
    named = {"steps": [1], "phases": "alternate", "overlap": "none"}
    seen: list[str] = []
    monkeypatch.setattr("hpdm_core.families.settings.budget_options", lambda *_, **__: (dict(named), 2.0))
    monkeypatch.setattr(cmd_sample, "launch", lambda words, *_: seen.extend(words))
    line = ["sample", "--ckpt", str(folder / "model.safetensors"), "--out", str(tmp_path / "videos"), "--nproc", "2"]
    done = CliRunner().invoke(app, ["--verbose", *line, "--budget", "5s", "--overlap", "spatial"])
    assert done.exit_code == 0, done.output
    settings = (tmp_path / "videos/samples.json").read_text()
    assert seen[:2] == ["--verbose", "sample"]
    assert "--budget" not in seen
    again = CliRunner().invoke(app, seen)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "videos/samples.json").read_text() == settings
    assert json.loads(settings)["options"]["overlap"] == "spatial"
    assert json.loads(settings)["options"]["phases"] == "alternate"


def test_ranks_of_another_launcher_claim_a_folder_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mkdir = Path.mkdir

    def meanwhile(path: Path, *args: Any, **kwargs: Any) -> None:
        """Another rank is a moment ahead."""
        mkdir(path, *args, **kwargs)
        (path / "samples.json").write_text('{\n "steps": 2\n}\n')

    monkeypatch.setattr(Path, "mkdir", meanwhile)
    with pytest.raises(ConfigError, match="samples made otherwise: steps: 2 against 1"):
        cmd_sample._claim(tmp_path / "a", {"steps": 1})
    cmd_sample._claim(tmp_path / "b", {"steps": 2})
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["samples.json"]
