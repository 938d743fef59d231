from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core.config.presets import list_presets, preset_description, read_preset
from hpdm_core.families.registry import load_run_config


def presets(*args: str) -> Result:
    return CliRunner().invoke(app, ["presets", *args])


def test_list_names_and_describes_every_preset() -> None:
    result = presets("list")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert sorted(lines) == list_presets()
    assert {"ucf101", "demo", "hpdm-smoke"} <= set(lines)
    assert preset_description("demo") in lines["demo"]


def test_show_prints_the_file_as_it_was_written() -> None:
    assert presets("show", "demo").stdout.rstrip() == read_preset("demo").rstrip()


def test_show_resolved_prints_a_config_that_loads_to_the_same(tmp_path: Path) -> None:
    file = tmp_path / "full.yaml"
    file.write_text(presets("show", "demo", "--resolved").stdout)
    assert "final_lr_fraction" in file.read_text()
    assert load_run_config(file) == load_run_config("demo")


def test_show_with_overrides_is_resolved() -> None:
    assert "seed: 41" in presets("show", "demo", "--set", "train.seed=41").stdout
    bad = presets("show", "demo", "--set", "train.sed=41")
    assert bad.exit_code == 2
    assert "did you mean train.seed?" in bad.stderr


@pytest.mark.parametrize("command", ["show", "copy"])
def test_unknown_presets_exit_2_with_the_nearest(command: str) -> None:
    result = presets(command, "dmeo")
    assert result.exit_code == 2
    assert "did you mean demo?" in result.stderr
    assert "hpdm presets list" in result.stderr


def test_copy_writes_an_editable_file_and_overwrites_only_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert presets("copy", "demo").stdout == "demo.yaml\n"
    assert (tmp_path / "demo.yaml").read_text() == read_preset("demo")
    (tmp_path / "demo.yaml").write_text("mine")
    refused = presets("copy", "demo")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert (tmp_path / "demo.yaml").read_text() == "mine"
    assert presets("copy", "demo", "--force").exit_code == 0
    assert (tmp_path / "demo.yaml").read_text() == read_preset("demo")


def test_copy_takes_a_file_or_a_folder(tmp_path: Path) -> None:
    assert presets("copy", "demo", str(tmp_path)).exit_code == 0
    assert presets("copy", "demo", str(tmp_path / "new" / "[val].yaml")).stdout.endswith("[val].yaml\n")
    assert load_run_config(tmp_path / "demo.yaml") == load_run_config(tmp_path / "new" / "[val].yaml")


def test_copy_to_an_impossible_place_exits_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = presets("copy", "demo", str(tmp_path / "file" / "x.yaml"))
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
