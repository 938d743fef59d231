"""What is wrong on a command line is said in one line, before anything is read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from hpdm_cli.app import app

TOY = "tests.support.toy_detector:build"
ENTRY = {"label": "FVD", "value": 91.25, "ci95": [88.5, 94.5], "n_real": 64, "n_fake": 32}
RESULT = {"metrics": {"fvd": ENTRY}, "protocol": {"name": "p"}, "protocol_hash": "0123"}


def hpdm(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(result: Result, *words: str) -> bool:
    """Whether a call was ended as wrong usage, with `words` and with nothing that tells of a bug or of work."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert all(word in result.stderr for word in words), result.stderr
    return '"event"' not in result.stderr


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    np.savez(tmp_path / "videos.npz", np.zeros((2, 4, 8, 8, 3), np.uint8))
    return tmp_path / "videos.npz"


@pytest.mark.parametrize("more", [(), ("--watch", "run"), ("--dry-run",)])
def test_an_unknown_metric_is_told_with_the_nearest(videos: Path, more: tuple[str, ...]) -> None:
    fake = () if "--watch" in more else ("--real", videos, "--fake", videos, "--detector", TOY, "--n", 2)
    for name, near in (("fdv", "fvd"), ("clipsin", "clipsim"), ("FVD", "fvd")):
        done = hpdm("eval-fvd", "--metrics", f"is,{name}", *fake, *more)
        assert refused(done, f"unknown metric {name}; did you mean {near}?", "there are fvd, kvd")


@pytest.mark.parametrize("option", ["--max-fvd", "--min-is"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_threshold_that_nothing_can_meet_or_miss(videos: Path, tmp_path: Path, option: str, value: str) -> None:
    out = tmp_path / "out.json"
    done = hpdm("eval-fvd", "--real", videos, "--fake", videos, "--detector", TOY, option, value, "--json", out)
    assert refused(done, f"{option} is {value}")
    assert not out.exists()


@pytest.mark.parametrize(
    "args", [("--gpu-memory", "inf"), ("--gpu-memory", "nan"), ("--price", "inf"), ("--tflops", "inf")]
)
def test_an_estimate_of_no_number(args: tuple[str, str]) -> None:
    assert refused(hpdm("estimate", "hpdm-smoke", *args), args[0])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize(
    "command", ["eval-fvd --json", "eval-fvd --save-stats", "report --out", "inspect --json", "estimate --json"]
)
def test_what_is_no_regular_file_is_not_replaced(videos: Path, tiny_store: Path, tmp_path: Path, command: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    name, option = command.split()
    detector = ("--detector", TOY, "--set", "clip.frames=4", "--n", 2)
    others = {"eval-fvd": ("--real", videos, "--fake", videos, *detector), "estimate": ("hpdm-smoke",)}
    done = hpdm(name, *others.get(name, (tiny_store,)), option, pipe)
    assert refused(done, f"{option}: cannot write {pipe}: it is no regular file")
    assert pipe.is_fifo()


def test_a_contact_sheet_takes_any_name_but_a_folders(tiny_store: Path, tmp_path: Path) -> None:
    assert refused(hpdm("inspect", tiny_store, "--contact-sheet", tmp_path), "--contact-sheet: cannot write")
    assert hpdm("inspect", tiny_store, "--contact-sheet", tmp_path / "c.txt").exit_code == 0
    with Image.open(tmp_path / "c.txt") as sheet:
        assert sheet.format == "PNG"


@pytest.mark.parametrize("name", ["os:getcwd", "os:path", ":x", ".a:b", "json:loads"])
def test_a_detector_that_cannot_be_built_is_named(videos: Path, name: str) -> None:
    assert refused(
        hpdm("eval-fvd", "--real", videos, "--fake", videos, "--detector", name, "--n", 2), f"detector {name}"
    )


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ENTRY.items() if key != name}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ENTRY | {"value": "91"}, "key metrics.fvd.value: expected a number, found text '91'"),
        (ENTRY | {"ci95": [88.5]}, "key metrics.fvd.ci95: expected a list of at least 2 items"),
        (without("n_real"), "key metrics.fvd.n_real is missing"),
        (without("label"), "key metrics.fvd.label is missing"),
        (7, "key metrics.fvd: expected"),
    ],
)
def test_compare_names_what_a_result_lacks(tmp_path: Path, entry: object, words: str) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(RESULT))
    bad.write_text(json.dumps(RESULT | {"metrics": {"fvd": entry}}))
    assert refused(hpdm("compare", good, bad), f"{bad} is not an evaluation result", words)
    bad.write_text(json.dumps([RESULT]))
    assert refused(hpdm("compare", good, bad, "--anyway"), f"{bad} is not an evaluation result")
    bad.write_text(json.dumps(RESULT | {"metrics": {"fvd": ENTRY | {"ci95": None, "n_real": None, "value": 3}}}))
    assert hpdm("compare", good, bad, "--anyway").exit_code == 0


def test_an_empty_source_is_a_data_error_whatever_its_kind(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "notes.txt").touch()
    for kind in ("auto", "ucf101", "folder", "frames"):
        done = hpdm("prepare-data", tmp_path / "src", "--source", kind, "--out", tmp_path / "store")
        assert (done.exit_code, f"found in {tmp_path / 'src'}" in done.stderr) == (3, True), kind
    (tmp_path / "src" / "list.csv").touch()
    assert refused(hpdm("prepare-data", tmp_path / "src", "--out", tmp_path / "store"), "cannot tell what kind")
