"""Tensor files are written whole or not at all, and a disk that refuses is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.nn import tensor_files
from hpdm_core.nn.tensor_files import write_tensors


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    for value in (1.0, 2.0):
        write_tensors(path, {"a": torch.full((2, 2), value).T}, {"about": "a test"})
    assert torch.equal(load_file(path)["a"], torch.full((2, 2), 2.0))
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_a_file_as_they_may_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_the_system_refuses_is_an_oserror_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 240}.safetensors"  # no room for the suffix of the unfinished file
    with pytest.raises(OSError, match="too long") as caught:
        write_tensors(path, {"a": torch.zeros(1)}, {})
    assert caught.value.filename == str(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_tensors(tmp_path / "folder", {"a": torch.zeros(1)}, {})
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": torch.ones(1)}, {})

    def break_off(tensors: object, partial: Path, metadata: object) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "save_file", break_off)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"a": torch.zeros(1)}, {})
    assert load_file(path)["a"].item() == 1
    assert list(tmp_path.iterdir()) == [path]
