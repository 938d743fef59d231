from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hpdm_cli.app import app


def estimate(*args: str) -> Result:
    return CliRunner().invoke(app, ["estimate", *args])


def test_an_estimate_in_words_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "estimate.json"
    result = estimate("hpdm-smoke", "--gpus", "2", "--price", "3", "--json", str(file))
    assert result.exit_code == 0
    for word in ("parameters: ", "by level: level0 ", "fits on GPUs of 80 GiB", "largest micro-batch", "at 3 per GPU"):
        assert word in result.stdout
    found = json.loads(file.read_text())
    assert found["parameters"]["total"] > 10_000
    assert found["verdict"] == "fits"
    assert found["cost"] == found["days"] * 24 * 2 * 3
    (phase,) = found["phases"]
    (role,) = phase["roles"]
    assert sum(role["bytes"].values()) == found["peak_bytes"]
    assert abs(sum(role["flops_by_level"].values()) / role["flops_per_video"] - 1) < 1e-6
    assert abs(sum(role["flops_by_block"].values()) / role["flops_per_video"] - 1) < 1e-6
    assert [stage["name"] for stage in found["sampling"]["stages"]] == ["level0", "level1", "level2"]
    assert found["sampling"]["seconds"] > 0


def test_json_on_standard_output_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = estimate("hpdm-smoke", "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verdict"] == "fits"
    assert list(tmp_path.iterdir()) == []


def test_unknown_presets_and_keys_exit_2() -> None:
    assert estimate("hpdm-smok").exit_code == 2
    assert estimate("hpdm-smoke", "--set", "train.sed=1").exit_code == 2
    assert estimate("hpdm-smoke", "--gpus", "3").exit_code == 2


def test_an_unwritable_json_file_exits_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = estimate("hpdm-smoke", "--json", str(tmp_path / "file" / "x.json"))
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
