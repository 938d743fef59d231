"""`hpdm report` on runs and folders of samples, whole and lacking."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core.config.load import dump_config
from hpdm_core.data.store import VideoStore
from hpdm_core.data.write import tile_videos, write_mp4, write_npz
from hpdm_core.families.registry import load_run_config
from hpdm_core.training.source import DATA_FILE, note_store

SECTIONS = ("overview", "curves", "samples", "metrics", "seams")


def report(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, args)])


def clips(num: int = 2, frames: int = 8, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, frames, side, side, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a config and a log and nothing else."""
    run = tmp_path / "run<1>"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(load_run_config("hpdm-smoke")))
    entries = [
        {"step": i, "phase": "joint", "videos_seen": 4 * i, "loss": 3 / i,
         "loss_levels": {"level0": 1 / i, "level1": 2 / i}, "lr": 1e-3, "grad_norm": 0.5,
         "videos_per_s": 7.0, "memory_gib": 0.25, "seconds": 1.0 * i}
        for i in range(1, 40)
    ]  # fmt: skip
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return run


@pytest.fixture(scope="module")
def store(prepared: Callable[[str], Path]) -> Path:
    """A prepared store of 20 procedural clips."""
    return prepared("--num 20 --frames 9 --size 32x32")


def add_grid(run: Path, step: int) -> None:
    facts = {"seeds": [0, 1], "classes": ["circle sliding", "ring orbiting"]}
    write_mp4(run / "samples" / f"step_{step:08d}" / "grid.mp4", tile_videos(clips(), columns=2), 8.0, facts)


def add_scores(run: Path) -> None:
    result = {
        "metrics": {"fvd": {"label": "rFVD", "value": 91.25, "ci95": [88.5, 94.5], "n_real": 64, "n_fake": 32}},
        "protocol": {"name": "smoke<x>", "clip": {"frames": 9}},
        "protocol_hash": "0123456789abcdef",
        "networks": [{"name": "random-i3d"}],
        "warnings": ["rFVD is not FVD"],
    }
    (run / "scores").mkdir()
    (run / "scores" / "step_00000020.json").write_text(json.dumps(result))
    (run / "scores" / "best.json").write_text('{"fvd": 91.25}')


def assert_self_contained(page: str) -> None:
    assert all(s.startswith(("data:image/", "#")) for s in re.findall(r'(?:src|srcset|href)="([^"]*)"', page))
    assert "://" not in re.sub(r"<code>.*?</code>", "", page, flags=re.DOTALL)
    assert "<script" not in page


def test_a_bare_run_says_in_a_line_each_what_it_lacks(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    result = report(run, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(str(out))
    page = out.read_text(encoding="utf-8")
    for anchor in SECTIONS:
        assert f'<section id="{anchor}">' in page
    assert page.count('class="empty"') == 3
    assert "No samples in" in page
    assert "No evaluation results" in page
    assert page.count("<svg") == 5
    assert "run<1>" not in page
    assert "run&lt;1&gt;" in page
    assert "max_steps: 4" in page
    assert_self_contained(page)


def test_a_run_with_everything_shows_everything(run: Path, store: Path, tmp_path: Path) -> None:
    add_grid(run, 10)
    add_grid(run, 20)
    add_scores(run)
    result = report(run, "--store", store, "--nearest", "0", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'class="empty"' not in page
    assert "after 10 steps" in page
    assert "after 20 steps" in page
    assert "real clips of the same classes" in page
    assert "Heat-map of real clips" in page
    for cell in ("rFVD", "91.2", "88.5 to 94.5", "64", "32", "smoke&lt;x&gt;", "0123456789abcdef", "random-i3d"):
        assert f"{cell}</t" in page
    assert "rFVD is not FVD" in page
    assert_self_contained(page)


def test_a_run_without_a_log_and_one_without_a_config(run: Path, tmp_path: Path) -> None:
    (run / "log.jsonl").unlink()
    assert report(run, "--out", tmp_path / "a.html").exit_code == 0
    assert "There is no log in" in (tmp_path / "a.html").read_text(encoding="utf-8")
    other = tmp_path / "other"
    other.mkdir()
    (other / "log.jsonl").write_text("")
    assert report(other, "--out", tmp_path / "b.html").exit_code == 0


def test_samples_stand_beside_their_nearest_real_clips(store: Path, tmp_path: Path) -> None:
    for seed, video in enumerate(clips(frames=9)):
        write_npz(tmp_path / "made" / f"seed_{seed}.npz", video, 8.0, {"seed": seed, "class": "ring orbiting"})
    result = report(tmp_path / "made", "--store", store, "--nearest", "3", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<section id="curves">' not in page
    assert '<section id="nearest">' in page
    assert "not the network of FVD" in page
    assert len(re.findall(r"Nearest: .*? \(distance \d+\.\d\d\)", page)) == 2
    assert '"what": "nearest", "done": 5' in result.stderr


def test_clips_too_short_for_the_network_are_no_failure(store: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "made" / "seed_0.npz", clips(1, frames=4)[0], 8.0, {"seed": 0})
    result = report(tmp_path / "made", "--store", store, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "No nearest real clips" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_several_runs_are_compared(run: Path, tmp_path: Path) -> None:
    second = run.rename(tmp_path / "second")
    first = tmp_path / "first"
    first.mkdir()
    (first / "log.jsonl").write_text((second / "log.jsonl").read_text())
    assert report(first, second, "--out", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ">first</text>" in page
    assert ">second</text>" in page
    assert '<section id="curves-1">' in page
    assert '<section id="curves-2">' in page


@pytest.mark.parametrize(("words", "code"), [(["nowhere"], 3), ([], 2), ([".", "--out", "."], 2)])
def test_mistakes(words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(*words).exit_code == code


def test_videos_of_several_clips_show_how_they_join(store: Path, tmp_path: Path) -> None:
    video = clips(1, frames=9)[0]
    video[3:6] //= 4
    write_npz(tmp_path / "long" / "seed_000000.npz", video, 8.0, {"seed": 0, "joins": [3, 6]})
    result = report(tmp_path / "long", "--store", store, "--nearest", "0", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<section id="joins">' in page
    assert "clips join at 3, 6" in page
    write_npz(tmp_path / "short" / "seed_000000.npz", video, 8.0, {"seed": 0})
    assert report(tmp_path / "short", "--out", tmp_path / "short.html").exit_code == 0
    assert 'id="joins"' not in (tmp_path / "short.html").read_text(encoding="utf-8")


def test_a_run_remembers_its_store(run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPDM_DATA", raising=False)
    add_grid(run, 10)
    note_store(run, VideoStore.open(store))
    assert report(run, "--out", "page.html").exit_code == 0
    assert "real clips of the same classes" in Path("page.html").read_text()
    about = json.loads((run / DATA_FILE).read_text())
    (run / DATA_FILE).write_text(json.dumps(about | {"fingerprint": "another"}))
    assert report(run, "--out", "page.html").exit_code == 0
    assert "real clips of the same classes" not in Path("page.html").read_text()
