"""`hpdm eval-fvd --watch`: each checkpoint once, the best kept, an end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_cli.watch import run_is_finished, watch_run
from hpdm_core.config.load import dump_config, plain_config
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.weights import WeightsHeader, save_weights
from hpdm_core.training.source import weightless_family

TOY = "tests.support.toy_detector:build"


def hpdm(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    np.savez(tmp_path / "real.npz", np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), dtype=np.uint8))
    return tmp_path / "real.npz"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained model of three levels: 2 frames of 8x8, 4 of 16x16, 8 of 32x32."""
    config = load_run_config("hpdm-smoke", ["model.condition.num_classes=2"])
    torch.manual_seed(0)
    tensors = build_family(config).state_dict()
    save_weights(tmp_path / "model.safetensors", tensors, WeightsHeader(plain_config(config), classes=["a", "b"]))
    return tmp_path / "model.safetensors"


class Run:
    """A run directory whose checkpoints have scores by name."""

    def __init__(self, root: Path, values: dict[str, float]) -> None:
        self.root, self.values, self.asked = root, values, []
        self.protocol_hash = "h"

    def add(self, name: str) -> Path:
        folder = self.root / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_text(name)
        return folder

    def score(self, path: str) -> dict[str, Any]:
        weights = Path(path).read_text()
        self.asked.append(weights)
        return {"metrics": {"fvd": {"label": "rFVD", "value": self.values[weights]}}, "protocol_hash": "h"}

    def watch(self, key: str, ends: Callable[[Path, Path], bool], **changes: Any) -> None:
        asked = {"score": self.score, "write": write, "sleep": lambda _: None, **changes}
        watch_run(self.root, key, finished=ends, **asked)


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def over(run: Path, newest: Path) -> bool:
    return True


def test_watch_scores_each_checkpoint_once_keeps_the_best_and_ends_with_the_run(tmp_path: Path) -> None:
    values = {"step_00000001": 5.0, "step_00000002": 3.0, "step_00000003": 4.0}
    run = Run(tmp_path / "run", values)
    names = iter(list(values)[1:])
    run.add("step_00000001")
    last = list(values)[-1]
    run.watch("key", lambda _, newest: newest.name == last, sleep=lambda _: run.add(next(names)))
    assert run.asked == list(values)
    scores = run.root / "scores" / "key"
    assert json.loads((scores / "best.json").read_text())["checkpoint"] == "step_00000002"
    assert (scores / "best.safetensors").read_text() == "step_00000002"
    result = json.loads((scores / f"{last}.json").read_text())
    assert result["fake"]["path"] == str(run.root / "checkpoints" / last)
    assert [path.name for path in scores.glob("*.safetensors")] == ["best.safetensors"]
    run.watch("key", over)
    assert run.asked == list(values)
    run.watch("other", over)
    assert run.asked == [*values, *values]


def test_watch_keeps_the_best_weights_though_training_prunes_them_meanwhile(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"step_00000001": 5.0})
    folder = run.add("step_00000001")

    def score(path: str) -> dict[str, Any]:
        shutil.rmtree(folder)
        return run.score(path)

    run.watch("key", over, score=score)
    assert (run.root / "scores" / "key" / "best.safetensors").read_text() == "step_00000001"


def test_watch_passes_over_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"step_00000002": 5.0})
    gone = run.add("step_00000001")
    run.add("step_00000002")

    def ends(root: Path, newest: Path) -> bool:
        shutil.rmtree(gone, ignore_errors=True)  # after the listing
        return True

    run.watch("key", ends)
    assert run.asked == ["step_00000002"]


def test_a_run_is_finished_when_its_last_phase_is(tmp_path: Path) -> None:
    config = load_run_config("pvdm-smoke")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    phases = [phase.name for phase in weightless_family(config).phases()]
    assert len(phases) > 1
    for phase, finished, expected in (
        (phases[-1], True, True), (phases[-1], False, False), (phases[0], True, False),
    ):  # fmt: skip
        (tmp_path / "state.json").write_text(json.dumps({"state": {"phase": phase, "finished": finished}}))
        assert run_is_finished(tmp_path, tmp_path) is expected
    (tmp_path / "state.json").unlink()
    assert not run_is_finished(tmp_path, tmp_path)


def test_watch_refuses_what_it_would_ignore(real: Path, tmp_path: Path) -> None:
    for option in (("--max-fvd", 1), ("--min-is", 1), ("--json", tmp_path / "x.json"), ("--fake", real)):
        done = hpdm("eval-fvd", "--watch", tmp_path, "--real", real, "--detector", TOY, *option)
        assert (done.exit_code, f"takes no {option[0]}" in done.stderr) == (2, True), done.stderr


def test_watch_from_the_command_line(checkpoint: Path, real: Path, tmp_path: Path) -> None:
    run, newest = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000004"
    newest.mkdir(parents=True)
    checkpoint.rename(newest / "weights.safetensors")
    config = load_run_config("hpdm-smoke")
    (run / "config.yaml").write_text(dump_config(config))
    phase = weightless_family(config).phases()[-1].name
    (newest / "state.json").write_text(json.dumps({"state": {"phase": phase, "finished": True}}))
    args = ("--real", real, "--detector", TOY, "--n", 2, "--set", "clip.frames=8")
    done = hpdm("eval-fvd", "--watch", run, *args)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("step_00000004 FVD[Toy distance] ")
    assert len(list(run.glob("scores/*/step_00000004.json"))) == len(list(run.glob("scores/*/best.safetensors"))) == 1
    assert hpdm("eval-fvd", "--watch", run, *args).stdout == ""
    assert hpdm("eval-fvd", "--watch", run, *args, "--set", "statistics.ddof=1").stdout != ""
