"""`hpdm inspect` on stores, samples and weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core.data.write import write_mp4
from tests.support.videos import sample_video, write_lossless


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, args)])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two equal clips, a black one, a still one and a lively one."""
    root = tmp_path_factory.mktemp("inspect")
    (root / "src" / "cat").mkdir(parents=True)
    (root / "src" / "dog").mkdir()
    write_lossless(root / "src" / "cat" / "one.avi", sample_video(0, 20))
    write_lossless(root / "src" / "dog" / "same.avi", sample_video(0, 20))
    write_lossless(root / "src" / "dog" / "black.avi", np.full((5, 64, 80, 3), 3, np.uint8))
    write_lossless(root / "src" / "dog" / "still.avi", np.repeat(sample_video(1, 1), 5, axis=0))
    result = run("prepare-data", root / "src", "--out", root / "store", "--size", "32x32", "--workers", "1")
    assert result.exit_code == 0, result.output
    return root / "store"


def test_the_report(store: Path, tmp_path: Path) -> None:
    result = run("inspect", store, "--json", tmp_path / "facts.json", "--contact-sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0
    assert "clips        4, 50 frames" in result.stdout
    assert "fps          25: 4" in result.stdout
    assert "duplicates   1 groups (cat/one.avi = dog/same.avi)" in result.stdout
    assert "black        1 (dog/black.avi)" in result.stdout
    assert "static       1 (dog/still.avi)" in result.stdout
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["survey"]["classes"] == {"cat": 1, "dog": 3}
    assert {"from": 4, "to": 7, "clips": 2} in facts["survey"]["lengths"]
    assert len(facts["store"]["fingerprint"]) == 64
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 34, 4 * (16 + 34))


def test_json_on_standard_output_stands_alone(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("inspect", store, "--json", "-", "--verify")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["survey"]["num_clips"] == 4
    assert "every stored byte matches" in result.stderr
    assert list(tmp_path.iterdir()) == []
    write_mp4(tmp_path / "a.mp4", sample_video(frames=3), 12, {"seed": 3})
    write_mp4(tmp_path / "b.mp4", sample_video(frames=3), 12)
    assert [json.loads(run("inspect", name, "--json", "-").stdout) for name in ("a.mp4", "b.mp4")] == [{"seed": 3}, {}]


def test_verify_finds_damage(store: Path) -> None:
    assert "every stored byte matches" in run("inspect", store, "--verify").stdout
    shard = store / "shards" / "00000-16x16.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = run("inspect", store, "--verify")
    shard.write_bytes(whole)
    assert result.exit_code == 3
    assert "dog/still.avi: checksum of the 16x16 frames is wrong" in result.output


def test_a_sample_tells_where_it_came_from(tmp_path: Path) -> None:
    write_mp4(tmp_path / "seed3.mp4", sample_video(frames=3), 12, {"seed": 3})
    result = run("inspect", tmp_path / "seed3.mp4")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"seed": 3})


@pytest.mark.parametrize("name", ["a.npz", "a.png", "a.gif", "a.mp4"])
def test_damaged_samples_exit_three(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    result = run("inspect", tmp_path / name)
    assert result.exit_code == 3
    assert f"{name} is damaged" in result.output
    assert "hint:" in result.output


@pytest.mark.parametrize("refused", ["store.json", "index.jsonl", ".npy"])
def test_a_store_that_may_not_be_read_exits_three(store: Path, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
            if path.name.endswith(refused):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return opened

    monkeypatch.setattr(Path, "open", refusing(Path.open))
    monkeypatch.setattr(np, "load", refusing(np.load))
    result = run("inspect", store)
    assert result.exit_code == 3
    assert "Permission denied" in result.output


def test_weights_of_a_version_without_frame_rates_are_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from hpdm_core.families.weights import WeightsHeader, read_header

    old = {key: value for key, value in asdict(WeightsHeader(config={}, step=3)).items() if key != "fps"}
    save_file({"a": torch.zeros(1)}, tmp_path / "old.safetensors", metadata={"hpdm": json.dumps(old)})
    header = read_header(tmp_path / "old.safetensors")
    assert (header.step, header.fps) == (3, None)


def test_weights_show_their_header(tmp_path: Path) -> None:
    import torch

    from hpdm_core.families.weights import WeightsHeader, save_weights

    step = tmp_path / "run" / "checkpoints" / "step_00000010"
    step.mkdir(parents=True)
    header = WeightsHeader(config={"family": "hpdm"}, classes=["cat"], step=10, store_fingerprint="ab")
    save_weights(step / "weights.safetensors", {"w": torch.zeros(2)}, header)
    for path in (tmp_path / "run", step, step / "weights.safetensors"):
        result = run("inspect", path)
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)
        assert (shown["step"], shown["classes"], shown["config"]) == (10, ["cat"], {"family": "hpdm"})


def test_nothing_there_exits_three(tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "nowhere")
    assert result.exit_code == 3
    assert "no store at" in result.output


def test_a_folder_of_videos_is_answered_with_what_makes_a_store_of_them(tmp_path: Path) -> None:
    (tmp_path / "vids").mkdir()
    write_lossless(tmp_path / "vids" / "a.avi", sample_video(frames=2))
    result = run("inspect", tmp_path / "vids")
    assert result.exit_code == 3
    assert f"{tmp_path / 'vids'} is not a store" in result.output
    assert f"hpdm prepare-data {tmp_path / 'vids'} --out {tmp_path / 'vids-store'}" in result.output
