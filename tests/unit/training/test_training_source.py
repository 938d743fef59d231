"""Finding the store, the line that prepares one, and the number of classes."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpdm_cli.app import app
from hpdm_core.errors import DataError, StoreMismatch
from hpdm_core.families.registry import load_run_config
from hpdm_core.training.plan import plan_training
from hpdm_core.training.source import find_store, with_classes
from tests.support.toy import toy_config
from tests.support.videos import sample_video, write_lossless


def make_store(path):
    path.mkdir(parents=True)
    (path / "store.json").write_text("{}")
    return path


def test_a_given_store_comes_first_then_the_config_then_the_usual_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPDM_DATA", str(tmp_path / "env"))
    config = load_run_config("hpdm-smoke")
    usual = make_store(tmp_path / "data" / "smoke")
    assert find_store(config, None) == Path("data/smoke")
    env = make_store(tmp_path / "env" / "smoke")
    assert find_store(config, None) == env
    named = load_run_config("hpdm-smoke", [f"data.store={make_store(tmp_path / 'named')}"])
    assert find_store(named, None) == tmp_path / "named"
    assert find_store(named, usual) == usual


def test_a_given_store_that_is_absent_is_not_replaced_by_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "data" / "smoke")
    with pytest.raises(DataError, match="elsewhere"):
        find_store(load_run_config("hpdm-smoke"), tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("preset", "line"),
    [
        ("hpdm-smoke", "hpdm prepare-data --source synthetic --frames 8 --size 32x32 --out data/smoke"),
        (
            "ucf101",
            "hpdm prepare-data path/to/UCF-101 --source ucf101 --size 256x256 --out data/ucf101",
        ),
    ],
)
def test_without_a_store_the_hint_is_the_line_to_run(tmp_path, monkeypatch, preset, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPDM_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        find_store(load_run_config(preset), None)
    assert caught.value.exit_code == 3
    assert line in caught.value.hint


def test_an_unfinished_store_is_to_be_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["prepare-data", "--source", "synthetic", "--num", "20", "--frames", "2", "--size", "16", "--workers", "1"]
    words += ["--out", "data/smoke"]
    assert CliRunner().invoke(app, [*words, "--shards", "1/2"]).exit_code == 0
    for given in (None, Path("data/smoke")):
        with pytest.raises(DataError, match="the store data/smoke is not finished") as caught:
            find_store(load_run_config("hpdm-smoke"), given)
        assert caught.value.hint == "run the same hpdm prepare-data command again to finish it"
    assert CliRunner().invoke(app, words).exit_code == 0
    assert find_store(load_run_config("hpdm-smoke"), None) == Path("data/smoke")


def test_a_folder_of_videos_is_a_source_and_not_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my vids" / "cats").mkdir(parents=True)
    write_lossless(tmp_path / "my vids" / "cats" / "a.avi", sample_video(frames=8))
    with pytest.raises(DataError, match="my vids is not a store") as caught:
        find_store(load_run_config("hpdm-smoke"), Path("my vids"))
    _, _, line = caught.value.hint.partition(": hpdm ")
    assert line == "prepare-data 'my vids' --size 32x32 --out 'my vids-store'"
    assert CliRunner().invoke(app, [*shlex.split(line), "--workers", "1"]).exit_code == 0
    assert find_store(load_run_config("hpdm-smoke"), Path("my vids-store")) == Path("my vids-store")


def test_a_folder_of_something_else_is_no_place_for_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    config = load_run_config("hpdm-smoke")
    with pytest.raises(DataError, match="none at notes") as caught:  # prepare-data takes an empty folder
        find_store(config, Path("notes"))
    assert caught.value.hint.endswith("--out notes")
    (tmp_path / "notes" / "a.txt").touch()
    for path, out in (("notes", "notes-store"), ("notes/a.txt", "notes/a-store"), (".", f"{tmp_path.name}-store")):
        with pytest.raises(DataError, match=f"^{path} is not a store") as caught:
            find_store(config, Path(path))
        assert caught.value.hint.endswith(f"--source synthetic --frames 8 --size 32x32 --out {out}")


def test_the_number_of_classes_comes_from_the_store():
    config = load_run_config("hpdm-smoke")
    assert config.model.condition.num_classes is None
    filled = with_classes(config, ["a", "b", "c"])
    assert filled.model.condition.num_classes == 3
    assert config.model.condition.num_classes is None
    assert with_classes(filled, ["a", "b", "c"]) == filled
    with pytest.raises(StoreMismatch, match="expects 3 classes, and the store has 2"):
        with_classes(filled, ["a", "b"])
    with pytest.raises(StoreMismatch, match="no labels"):
        with_classes(config, [])


def test_models_without_classes_take_any_store():
    config = toy_config()
    assert with_classes(config, []) is config


def test_a_plan_without_a_store_still_counts_the_model():
    plan = plan_training(load_run_config("hpdm-smoke"), None)
    assert plan.parameters > 100_000
    (phase,) = plan.phases
    assert (phase.steps, phase.batch_size, phase.videos, phase.clips) == (4, 4, 16, None)
    assert phase.sizes[0] == (32, 32)
    assert plan.sampling.size == (32, 32)
