"""Checkpoints: what is in them, which are kept, and what happens when the disk is full."""

import errno
import json
import logging
import pickletools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.errors import CheckpointError, ConfigError, IncompatibleCheckpoint
from hpdm_core.families.weights import load_model, read_header
from hpdm_core.training import checkpoint as checkpoint_module
from hpdm_core.training.checkpoint import newest_valid
from hpdm_core.training.run import fit
from tests.support.toy import ToySource, toy_config


def folders(run):
    return sorted(f.name for f in (run / "checkpoints").iterdir())


def test_the_newest_are_kept_and_leftovers_go(tmp_path):
    run = tmp_path / "run"
    leftover = run / "checkpoints" / "step_00000002.tmp"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x" * 100)
    fit(toy_config(keep_checkpoints=2), ToySource(), run, device="cpu")
    assert folders(run) == ["step_00000015", "step_00000020"]


def test_a_damaged_newer_checkpoint_does_not_push_out_the_good_ones(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(max_steps=10, checkpoint_every_steps=5, keep_checkpoints=2), ToySource(), run, device="cpu")
    (run / "checkpoints/step_00000010/weights.safetensors").write_bytes(b"")
    config = toy_config(max_steps=10, checkpoint_every_steps=3, keep_checkpoints=1)

    class Enough(Exception):
        pass

    def stop(family, folder):
        raise Enough

    again = config.model_copy(update={"train": config.train.model_copy(update={"sample_every_steps": 6})})
    with pytest.raises(Enough):
        fit(again, ToySource(), run, device="cpu", sample=stop)
    assert folders(run) == ["step_00000006", "step_00000010"]
    assert newest_valid(run).path.name == "step_00000006"


def test_weights_are_the_first_average_and_load_without_the_run(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(max_steps=5), ToySource(), run, device="cpu")
    folder = run / "checkpoints" / "step_00000005"
    weights = load_file(folder / "weights.safetensors")
    (state_file,) = (folder / "state").iterdir()
    state = load_file(state_file)
    assert torch.equal(weights["net.inner.weight"], state["ema/power_0.050/net.inner.weight"])
    assert not torch.equal(weights["net.inner.weight"], state["model/net.inner.weight"])
    assert torch.equal(weights["net.scale"], torch.tensor([2.0]))
    header = read_header(folder / "weights.safetensors")
    assert (header.step, header.videos_seen, header.ema) == (5, 20, "power_0.050")
    assert header.classes == ["a", "b", "c", "d"]
    model = load_model(run)
    assert torch.equal(model.family.state_dict()["net.outer.bias"], weights["net.outer.bias"])
    assert model.config == toy_config(max_steps=5)


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "manifest", "truncate without manifest"])
def test_sampling_skips_damaged_weights_as_training_does(tmp_path, damage, caplog):
    run = tmp_path / "run"
    fit(toy_config(max_steps=4, checkpoint_every_steps=2), ToySource(), run, device="cpu")
    newest = run / "checkpoints" / "step_00000004"
    weights, manifest = newest / "weights.safetensors", newest / "state.json"
    data = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:100])
    else:
        weights.write_bytes(data[:-7])
    if damage.endswith("without manifest"):
        manifest.unlink()
    assert load_model(run).header.step == 2
    assert [str(newest) in record.message for record in caplog.records if record.levelname == "WARNING"] == [True]
    (run / "checkpoints" / "step_00000002" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(IncompatibleCheckpoint, match=r"no weights in .*step_00000004: .*; step_00000002: "):
        load_model(run)


def test_weights_alone_stand_for_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(max_steps=2), ToySource(), run, device="cpu")
    folder = run / "checkpoints" / "step_00000002"
    for other in ("state", "state.json"):
        (folder / other).rename(tmp_path / other)
    assert load_model(run).header.step == 2


def test_without_ema_the_weights_are_raw(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(max_steps=2, ema={"kind": "none"}), ToySource(), run, device="cpu")
    folder = run / "checkpoints" / "step_00000002"
    (state_file,) = (folder / "state").iterdir()
    weights = load_file(folder / "weights.safetensors")
    assert torch.equal(weights["net.inner.weight"], load_file(state_file)["model/net.inner.weight"])


def test_nothing_is_pickled(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(max_steps=2), ToySource(), run, device="cpu")
    for file in (run / "checkpoints").rglob("*"):
        if file.is_file():
            assert file.suffix in (".safetensors", ".json"), file
            with pytest.raises(ValueError):
                list(pickletools.genops(file.read_bytes()))


def test_a_full_disk_is_one_line_and_old_checkpoints_stay(tmp_path, monkeypatch):
    run = tmp_path / "run"
    fit(toy_config(max_steps=5), ToySource(), run, device="cpu")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("save_weights", "save_safetensors", "_seal"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_module, place, full)
            with pytest.raises(CheckpointError, match="no space left") as caught:
                fit(toy_config(max_steps=10), ToySource(), run, device="cpu")
        assert "\n" not in str(caught.value)
        assert "make room" in caught.value.hint
        assert folders(run) == ["step_00000005"]
    with monkeypatch.context() as patch:
        patch.setattr("hpdm_core.training.hooks.os.fsync", full)
        with pytest.raises(CheckpointError, match=r"log\.jsonl"):
            fit(toy_config(max_steps=10), ToySource(), run, device="cpu")
    assert folders(run) == ["step_00000005"]
    assert newest_valid(run) is not None


def test_an_unwritable_run_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(CheckpointError, match=str(file / "run")) as caught:
        fit(toy_config(max_steps=1), ToySource(), file / "run", device="cpu")
    assert "permissions" in caught.value.hint
    with pytest.raises(ConfigError, match=f"{file} is a file"):
        fit(toy_config(max_steps=1), ToySource(), file, device="cpu")


def test_a_folder_of_other_things_is_no_place_for_a_run(tmp_path):
    config, run = toy_config(max_steps=1, checkpoint_every_steps=1), tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("a.txt", "b", "c.py", "d", "config.yaml"):
        (run / name).write_text("mine")
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=f"{run} is not empty and holds no run: a.txt, b, c.py, …") as caught:
            fit(config, ToySource(), run, fresh=fresh, device="cpu")
    assert caught.value.hint == "give another --out"
    assert {file.read_text() for file in run.iterdir() if file.is_file()} == {"mine"}
    assert len(list(run.iterdir())) == 6


def test_what_a_run_a_killed_start_or_a_scheduler_leaves_is_no_obstacle(tmp_path):
    config, run = toy_config(max_steps=1, checkpoint_every_steps=1), tmp_path / "run"
    for name in (".hidden", "config.yaml", "data.json", "log.jsonl", "job-7.out", "job-7.err", "train.log"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("")
    for name in ("checkpoints/step_00000001.tmp", "tensorboard", "samples", "scores"):
        (run / name).mkdir(parents=True)
    assert not fit(config, ToySource(), run, device="cpu").resumed
    (run / "notes.md").write_text("mine")
    assert fit(config, ToySource(), run, device="cpu").resumed
    (run / ".lock").unlink()  # as in a copy without hidden files
    assert fit(config, ToySource(), run, device="cpu").resumed


def test_a_start_that_was_killed_before_its_first_checkpoint_begins_again_beside_notes(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / "notes.md").write_text("mine")
    assert fit(toy_config(max_steps=1), ToySource(), tmp_path, device="cpu").step == 1


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": {"width": 12}}, "model.width: 8 there, 12 now"),
        ({"optimizer": {"name": "lamb"}}, "train.optimizer.name"),
        ({"ema": {"kind": "none"}}, "train.ema.kind"),
        ({"ema": {"widths": [0.1]}}, "train.ema.widths"),
    ],
)
def test_a_run_of_another_model_is_refused_by_key(tmp_path, change, key):
    run = tmp_path / "run"
    fit(toy_config(max_steps=1), ToySource(), run, device="cpu")
    config_before = (run / "config.yaml").read_text()
    with pytest.raises(IncompatibleCheckpoint, match="another configuration") as caught:
        fit(toy_config(max_steps=2, **change), ToySource(), run, device="cpu")
    assert key in str(caught.value)
    assert (run / "config.yaml").read_text() == config_before


def test_other_changes_are_said(tmp_path, caplog):
    run = tmp_path / "run"
    fit(toy_config(max_steps=2), ToySource(), run, device="cpu")
    other = ToySource()
    other.fingerprint = "changed"
    with caplog.at_level(logging.WARNING):
        result = fit(toy_config(max_steps=4, batch_size=8, seed=9), other, run, device="cpu")
    assert result.videos_seen == 2 * 4 + 2 * 8
    for words in ("train.batch_size changed from 4 to 8: the data order goes on", "train.seed", "not the one"):
        assert words in caplog.text


def test_a_change_of_threads_is_recorded_and_said(tmp_path, caplog):
    run = tmp_path / "run"
    fit(toy_config(max_steps=1), ToySource(), run, device="cpu")
    path = run / "checkpoints/step_00000001/state.json"
    record = json.loads(path.read_text())
    assert record["environment"]["threads"] == torch.get_num_threads()
    record["environment"]["threads"] = 63
    path.write_text(json.dumps(record))
    fit(toy_config(max_steps=2), ToySource(), run, device="cpu")
    assert "threads changed from 63" in caplog.text


def test_fresh_refuses_a_used_directory(tmp_path):
    run = tmp_path / "run"
    fit(toy_config(max_steps=1), ToySource(), run, fresh=True, device="cpu")
    with pytest.raises(ConfigError, match=str(run)):
        fit(toy_config(max_steps=1), ToySource(), run, fresh=True, device="cpu")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert Path(fit(toy_config(max_steps=1), ToySource(), empty, fresh=True, device="cpu").weights).is_file()
