"""A disk that is full is told with the file and the remedy, and costs neither the old file nor space for a half one.

The unfinished file is a link to /dev/full, which takes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hpdm_cli.app import app

TOY = "tests.support.toy_detector:build"

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


def hpdm(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def fill(path: Path) -> None:
    """Let nothing be written to `path`: under either name of an unfinished file."""
    for partial in (f"{path.name}.tmp", f".{path.stem}.{os.getpid()}.tmp{path.suffix}"):
        path.with_name(partial).symlink_to("/dev/full")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained model."""
    from hpdm_core.config.load import plain_config
    from hpdm_core.families.registry import build_family, load_run_config
    from hpdm_core.families.weights import WeightsHeader, save_weights

    config = load_run_config("hpdm-smoke", ["model.condition.num_classes=2"])
    path = tmp_path / "model.safetensors"
    save_weights(path, build_family(config).state_dict(), WeightsHeader(plain_config(config), classes=["a", "b"]))
    return path


@pytest.mark.parametrize(
    "command",
    ["estimate hpdm-smoke --json", "inspect STORE --json", "inspect STORE --contact-sheet", "presets copy demo --force",
     "eval-fvd --real VIDEOS --fake VIDEOS --set clip.frames=4 --n 2 --no-cache --json", "report MADE --out"],
)  # fmt: skip
def test_results(tiny_store: Path, tmp_path: Path, command: str) -> None:
    videos = np.random.default_rng(0).integers(0, 255, (2, 4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "videos.npz", videos)
    (tmp_path / "made").mkdir()
    np.savez(tmp_path / "made" / "seed_000000.npz", video=videos[0], fps=8.0, metadata='{"seed": 0}')
    places = {"STORE": tiny_store, "VIDEOS": tmp_path / "videos.npz", "MADE": tmp_path / "made"}
    detector = ("--detector", TOY) if command.startswith("eval-fvd") else ()
    name, *words = [places.get(word, word) for word in command.split()]
    out = tmp_path / "results" / "result.txt"
    out.parent.mkdir()
    out.write_text("old")
    fill(out)
    done = hpdm(name, *detector, *words, out)
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.endswith(f"error: No space left on device: {out}\nhint: free some space, then run it again\n")
    assert out.read_text() == "old"
    hpdm(name, *detector, *words, out)  # the links, which are gone, were all that was in the way
    assert out.read_bytes() != b"old"
    assert [file.name for file in out.parent.iterdir() if not file.is_symlink()] == [out.name]


@pytest.mark.parametrize("form", ["mp4", "gif", "npz"])
def test_samples(checkpoint: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out" / f"seed_000000.{form}"
    out.parent.mkdir()
    fill(out)
    words = ("sample", "--ckpt", checkpoint, "--level", 0, "--steps", 1, "--device", "cpu", "--format", form)
    done = hpdm(*words, "--out", out.parent)
    assert done.exit_code == 2, (done.output, done.exception)
    assert f"error: No space left on device: {out}\n" in done.stderr
    assert done.stderr.endswith("hint: free some space; the same command again continues\n")
    assert not out.exists()
    assert hpdm(*words, "--out", out.parent).exit_code == 0
    assert out.stat().st_size > 0


def test_the_settings_of_samples(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpdm_core.data import shard

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard.os, "fsync", full)
    done = hpdm(
        "sample", "--ckpt", checkpoint, "--level", 0, "--steps", 1, "--device", "cpu", "--out", tmp_path / "out"
    )
    assert f"error: No space left on device: {tmp_path / 'out' / 'samples.json'}\n" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_copy_that_failed_is_not_in_the_way_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("demo.yaml"))
    assert hpdm("presets", "copy", "demo").exit_code == 2
    assert hpdm("presets", "copy", "demo").exit_code == 0
