"""Every public naming of I3D loads to the same network, and files are recognised by their tensors."""

import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hpdm_core.errors import IncompatibleCheckpoint, WeightsMissing
from hpdm_core.metrics import i3d_weights
from hpdm_core.metrics.crc32c import crc32c
from hpdm_core.metrics.i3d_weights import canonical_i3d, load_i3d, recognise, tensorflow_layout
from hpdm_core.metrics.random_weights import random_i3d_weights
from hpdm_core.metrics.weight_files import read_tensors, tensor_table, tensors_digest


@pytest.fixture(scope="module")
def weights():
    return random_i3d_weights()


def hassony2(weights):
    """The names as that project's classes produce them, written out independently of the reader."""
    branches = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1"}
    branches |= {"b2a": "branch_2.0", "b2b": "branch_2.1", "b3b": "branch_3.1"}
    renamed = {}
    for key, value in weights.items():
        name = re.sub(r"\.(b\d[ab]?)\.", lambda m: f".{branches[m[1]]}.", key)
        name = name.replace(".bn.", ".batch3d.").replace("logits.", "conv3d_0c_1x1.")
        renamed[name.replace("Conv3d", "conv3d").replace("Mixed", "mixed")] = value
    return renamed


def assert_same(tensors, weights):
    assert tensors.keys() == weights.keys()
    assert tensors_digest(tensors) == tensors_digest(weights)


def test_piergiaj_and_videogpt_names(weights, tmp_path):
    extra = {f"module.{k}": v for k, v in weights.items()}
    extra["module.Conv3d_1a_7x7.bn.num_batches_tracked"] = torch.tensor(3)
    torch.save({"state_dict": extra}, tmp_path / "rgb.pt")
    tensors, naming = canonical_i3d(read_tensors(tmp_path / "rgb.pt"))
    assert naming == "piergiaj/VideoGPT"
    assert_same(tensors, weights)


def test_hassony2_names(weights, tmp_path):
    renamed = hassony2(weights)
    assert "mixed_4f.branch_3.1.batch3d.running_var" in renamed
    assert "conv3d_0c_1x1.conv3d.bias" in renamed
    save_file(renamed, tmp_path / "model_rgb.safetensors")
    tensors, naming = canonical_i3d(read_tensors(tmp_path / "model_rgb.safetensors"))
    assert naming == "hassony2"
    assert_same(tensors, weights)


def test_tensorflow_names_and_the_typo_kept_in_them(weights, tmp_path):
    arrays = tensorflow_layout(weights)
    assert arrays["RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w"].shape == (7, 7, 7, 3, 64)
    typo = "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w"
    np.testing.assert_array_equal(arrays[typo][..., 0, 0], weights["Mixed_5b.b2b.conv3d.weight"][0, 0])
    np.savez(tmp_path / "i3d.npz", **{f"module/{k}:0": v for k, v in arrays.items()})
    tensors, naming = canonical_i3d(read_tensors(tmp_path / "i3d.npz"))
    assert naming == "TensorFlow"
    assert_same(tensors, weights)


def test_tensorflow_data_file_is_read_by_its_offsets(weights, tmp_path):
    arrays = tensorflow_layout(weights)
    path = tmp_path / "model.ckpt.data-00000-of-00001"
    with path.open("wb") as file:
        for row in sorted(tensor_table(), key=lambda row: row["offset"]):
            assert file.tell() == row["offset"]
            file.write(arrays[row["tf"]].astype("<f4").tobytes())
    assert path.stat().st_size == 50_818_176
    assert_same(canonical_i3d(read_tensors(path))[0], weights)
    path.write_bytes(b"short")
    with pytest.raises(IncompatibleCheckpoint, match="5 bytes"):
        read_tensors(path)


def test_random_weights_are_unrecognised(weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    _, recognition = load_i3d(tmp_path / "w.safetensors")
    assert (recognition.network, recognition.matched, recognition.total) == ("unrecognised", 0, 230)
    assert "unrecognised" in recognition.describe()


@pytest.mark.parametrize("network", ["rgb_scratch", "rgb_imagenet"])
def test_a_file_is_recognised_when_every_checksum_agrees(weights, tmp_path, monkeypatch, network):
    # The true tensors are not here, so the table is rewritten to describe the seeded ones.
    column = i3d_weights._CRC_COLUMN[network]
    arrays = tensorflow_layout(weights)
    rows = [{**row, column: f"{crc32c(arrays[row['tf']]):08x}"} for row in tensor_table()]
    monkeypatch.setattr(i3d_weights, "tensor_table", lambda: rows)
    found = recognise(weights)
    assert (found.network, found.matched) == (network, 230)
    one_changed = {**weights, "logits.conv3d.bias": weights["logits.conv3d.bias"] + 1}
    assert recognise(one_changed).network == "unrecognised"
    assert recognise(one_changed).matched == 229
    scaled = {**weights, "Mixed_3b.b0.bn.weight": weights["Mixed_3b.b0.bn.weight"] * 2}
    assert recognise(scaled).network == "unrecognised"
    save_file(weights, tmp_path / "w.safetensors")
    if network == "rgb_imagenet":
        with pytest.raises(IncompatibleCheckpoint, match="rgb_imagenet"):
            load_i3d(tmp_path / "w.safetensors")
    assert load_i3d(tmp_path / "w.safetensors", allow_imagenet=True)[1].network == network


def test_the_table_holds_two_disjoint_networks():
    rows = tensor_table()
    assert len(rows) == 230
    assert all(row["crc32c_tfhub_k400"] != row["crc32c_rgb_imagenet"] for row in rows)


class Bomb:
    def __reduce__(self):
        return (print, ("code in a weights file was run",))


def test_pickled_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(IncompatibleCheckpoint, match=r"plain tensors: it holds a .*print too$"):
        read_tensors(tmp_path / "bomb.pt")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(IncompatibleCheckpoint):
        read_tensors(tmp_path / "raw.pth")
    assert "was run" not in capsys.readouterr().out


def test_other_bad_files(weights, tmp_path):
    with pytest.raises(WeightsMissing, match="no weights file"):
        read_tensors(tmp_path / "absent.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(IncompatibleCheckpoint, match="plain tensors"):
        read_tensors(tmp_path / "text.safetensors")
    for content in (b"", b"hello", pickle.dumps(print)):
        (tmp_path / "other.pth").write_bytes(content)
        with pytest.raises(IncompatibleCheckpoint, match=r"it (is no file of tensors|holds a .*print too)$"):
            read_tensors(tmp_path / "other.pth")
    with pytest.raises(IncompatibleCheckpoint, match="not an I3D"):
        canonical_i3d({"conv1.weight": torch.zeros(3)})
    wrong = {**weights, "logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)}
    with pytest.raises(IncompatibleCheckpoint, match="expected"):
        canonical_i3d(wrong)
    del wrong["logits.conv3d.weight"]
    with pytest.raises(IncompatibleCheckpoint, match=r"logits\.conv3d\.weight"):
        canonical_i3d(wrong)
