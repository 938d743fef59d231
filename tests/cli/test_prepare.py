"""`hpdm prepare-data` as typed: output, exit codes, and a folder of everything that can be wrong with a video."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core.data.store import VideoStore
from tests.support import videos
from tests.support.videos import sample_video, write_lossless, write_video

REPOSITORY = Path(__file__).parents[2]
SMALL = ("--size", "32x32", "--workers", "1")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["prepare-data", *map(str, args)])


def quarantine(store: Path) -> dict[str, str]:
    return {q["path"]: q["reason"] for q in map(json.loads, (store / "quarantine.jsonl").read_text().splitlines())}


def build_corpus(root: Path) -> dict[str, str]:
    """Good and bad files under `root`; the reason expected for each bad one."""
    import av

    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    good = write_lossless(root / "a" / "same.avi", sample_video(0, 20))
    write_lossless(root / "b" / "same.avi", sample_video(1, 20, (63, 79)))
    write_video(root / "a" / "ten_bit.mp4", sample_video(2), pixel_format="yuv420p10le")
    write_video(root / "a" / "vfr.mp4", sample_video(3), times=np.cumsum([1, 1, 2, 4] * 10).tolist())
    write_video(root / "a" / "ünïcödé 名前 [x].mp4", sample_video(4))
    write_video(root / "b" / "one.mp4", sample_video(5, 1))
    videos.claim_frames(good, root / "b" / "claims_fewer.avi", 3)
    if "libsvtav1" in av.codecs_available:
        write_video(root / "b" / "av1.mp4", sample_video(6), codec="libsvtav1")

    (root / "a" / "empty.mp4").touch()
    (root / "a" / "text.mp4").write_text("these are words\n" * 50)
    (root / "b" / "loop.mp4").symlink_to(root / "b" / "loop.mp4")
    (root / "b" / "up").symlink_to(root)
    videos.write_audio_only(root / "b" / "sound.mp4")
    videos.claim_frames(good, root / "b" / "claims_more.avi", 400)
    write_lossless(root / "b" / "hang.avi", sample_video(7, 3))
    whole = write_video(root / "whole.mp4", noise, container={"movflags": "faststart"})
    videos.cut(whole, root / "a" / "cut_end.mp4", 0, 0.6)
    videos.cut(whole, root / "a" / "cut_front.mp4", 0.4, 1)
    whole.unlink()
    expected = {
        "a/empty.mp4": "empty-file",
        "a/text.mp4": "not-a-video",
        "a/cut_end.mp4": "truncated",
        "a/cut_front.mp4": "not-a-video",
        "b/loop.mp4": "symlink-loop",
        "b/up": "symlink-loop",
        "b/sound.mp4": "no-video-stream",
        "b/claims_more.avi": "truncated",
        "b/hang.avi": "timeout",
    }
    private = Path(shutil.copy(good, root / "a" / "private.avi"))
    private.chmod(0)
    if os.access(private, os.R_OK):  # as root may
        private.unlink()
    else:
        expected["a/private.avi"] = "permission"
    return expected


def test_a_corpus_of_bad_files(tmp_path: Path) -> None:
    root, store = tmp_path / "corpus", tmp_path / "store"
    expected = build_corpus(root)
    good = {p.relative_to(root).as_posix() for p in root.glob("*/*.*")} - expected.keys()
    assert len(good) >= 7
    args = (root, "--out", store, "--source", "folder", *SMALL, "--deadline", "4")
    args += ("--decoders", "tests.support.videos:hanging_backend,decord,av")

    stopped = run(*args)
    assert stopped.exit_code == 3
    assert f"{len(expected)} of {len(expected) + len(good)} clips could not be used" in stopped.output
    assert f"--max-bad {len(expected)}" in stopped.output
    assert quarantine(store) == expected

    accepted = run(*args, "--max-bad", str(len(expected)))
    assert accepted.exit_code == 0
    assert f"kept         {len(good)} clips" in accepted.output
    assert f"quarantined  {len(expected)}, " in accepted.output
    assert "2 symlink-loop" in accepted.output
    assert "1 timeout" in accepted.output
    opened = VideoStore.open(store)
    assert {c.id for c in opened.clips} == good
    by_id = {c.id: c for c in opened.clips}
    assert by_id["b/one.mp4"].num_frames == 1
    assert by_id["b/claims_fewer.avi"].num_frames == 20
    assert by_id["a/vfr.mp4"].notes == ("variable frame rate",)
    assert by_id["a/same.avi"].sha256 != by_id["b/same.avi"].sha256
    assert opened.classes == ("a", "b")


def test_synthetic_needs_nothing_and_prints_one_summary(tmp_path: Path) -> None:
    result = run("--source", "synthetic", "--num", "5", "--frames", "3", "--out", tmp_path / "store", *SMALL)
    assert result.exit_code == 0
    assert "kept         5 clips, 15 frames" in result.stdout
    assert "quarantined  0" in result.stdout
    beats = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert beats[-1]["event"] == "progress_end"
    assert (beats[-1]["done"], beats[-1]["kept"], beats[-1]["frames"]) == (5, 5, 15)
    store = VideoStore.open(tmp_path / "store")
    assert store.sizes[0] == (32, 32)
    assert store.about["command"] == "hpdm prepare-data --size 32x32 --num 5 --frames 3 --source synthetic"


def test_the_command_of_scenes_is_recorded(tmp_path: Path) -> None:
    words = ("--source", "synthetic", "--style", "scenes", "--split", "test", "--frame-step", "8", "--num", "2")
    result = run(*words, "--frames", "2", "--out", tmp_path / "store", *SMALL)
    assert result.exit_code == 0
    assert "held-out pairs alone" in result.stderr
    assert VideoStore.open(tmp_path / "store").about["command"] == (
        "hpdm prepare-data --size 32x32 --split test --num 2 --frames 2 --frame-step 8 --style scenes "
        "--source synthetic"
    )
    refused = run("--source", "synthetic", "--split", "test", "--out", tmp_path / "other", *SMALL)
    assert refused.exit_code == 2
    assert "--style scenes" in refused.stderr


def test_the_recorded_command_makes_the_same_store(tmp_path: Path) -> None:
    source = tmp_path / "my films"
    source.mkdir()
    write_lossless(source / "a.avi", sample_video(0, 6))
    (source / "bad.mp4").write_text("no video")
    words = ("--size", "32x16", "--levels", "1", "--codec", "jpeg", "--fit", "stretch", "--max-frames", "3")
    words += ("--decoders", "av", "--max-bad", "1", "--deadline", "60")
    first = run(source, "--out", tmp_path / "my store", *words, "--workers", "1", "--shards", "1/1")
    assert first.exit_code == 0, first.output
    store = VideoStore.open(tmp_path / "my store")
    recorded = store.about["command"]
    assert not [word for word in ("--workers", "--shards", "--engine", "--out", "--dry-run") if word in recorded]
    shown = CliRunner().invoke(app, ["inspect", str(store.path)]).stdout
    (line,) = [line.partition(": ")[2] for line in shown.splitlines() if line.startswith("made by")]
    assert line == f"{recorded} --out '{store.path}'"
    store.path.rename(tmp_path / "aside")
    again = CliRunner().invoke(app, shlex.split(line)[1:])
    assert again.exit_code == 0, again.output
    assert VideoStore.open(store.path).about == store.about


def test_the_fingerprint_does_not_depend_on_the_command(tmp_path: Path) -> None:
    words = ("--source", "synthetic", "--num", "2", "--frames", "2", *SMALL)
    for name, more in (("a", ()), ("b", ("--max-bad", "2"))):
        assert run(*words, "--out", tmp_path / name, *more).exit_code == 0
    a, b = (VideoStore.open(tmp_path / name) for name in "ab")
    assert (a.about["command"] == b.about["command"], a.fingerprint == b.fingerprint) == (False, True)


@pytest.mark.parametrize(
    ("size", "levels", "most"), [("32x32", 9, "3 at most (32x32, 16x16, 8x8)"), ("33x32", 3, "1 at most (33x32)")]
)
def test_more_levels_than_the_size_allows_are_refused(tmp_path: Path, size: str, levels: int, most: str) -> None:
    words = ("--source", "synthetic", "--num", "1", "--frames", "1", "--size", size, "--out", tmp_path / "store")
    refused = run(*words, "--levels", str(levels))
    assert refused.exit_code == 2
    assert f"--levels {levels}: frames of {size} allow {most}" in refused.stderr
    assert not (tmp_path / "store").exists()
    assert run(*words, "--levels", most[0], "--dry-run").exit_code == 0
    assert run(*words, "--dry-run").exit_code == 0


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    write_lossless(tmp_path / "a.avi", sample_video(frames=2))
    result = run(tmp_path, "--out", tmp_path / "store", "--dry-run", "--size", "64x96", "--levels", "2")
    assert result.exit_code == 0
    assert "folder: 1 clips, 0 classes" in result.output
    assert "raw, frames of 64x96, 32x48" in result.output
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--size", "axb"), "cannot read size"),
        (("--max-bad", "lots"), "cannot read tolerance"),
        (("--decoders", "opencv"), "unknown decoder 'opencv'"),
        (("--source", "csv"), "not a csv table"),
        (("--split", "train"), "--split train"),
    ],
)
def test_usage_errors_exit_two(tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    write_lossless(tmp_path / "a.avi", sample_video(frames=2))
    result = run(tmp_path, "--out", tmp_path / "store", *args)
    assert result.exit_code == 2
    assert message in result.output
    assert "hint:" in result.output
    assert not (tmp_path / "store").exists()


def test_data_errors_exit_three(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "notes.txt").touch()
    empty = run(tmp_path / "src", "--source", "folder", "--out", tmp_path / "store")
    assert (empty.exit_code, "no videos found" in empty.output) == (3, True)
    (tmp_path / "src" / "a.mp4").touch()
    nothing_left = run(tmp_path / "src", "--out", tmp_path / "store", "--max-bad", "100%", *SMALL)
    assert nothing_left.exit_code == 3
    assert "no usable clip: all 1 failed (1 empty-file)" in nothing_left.output


def test_the_installed_command(tmp_path: Path) -> None:
    """As users run it: a process of its own, from another folder, with only stdout parsed."""
    args = ("--source", "synthetic", "--num", "3", "--frames", "2", "--out", "store", "--size", "16")
    result = subprocess.run(
        [sys.executable, "-m", "hpdm_cli", "prepare-data", *args],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "kept         3 clips, 6 frames"
    assert len(VideoStore.open(tmp_path / "store")) == 3


@pytest.mark.shared
def test_real_clips() -> None:
    """Every clip of the shared collection has as many frames as its manifest says."""
    import csv
    import tempfile

    data = REPOSITORY.parent / "shared" / "data"
    if not (data / "MANIFEST.csv").is_file():
        pytest.skip("no shared data")
    with (data / "MANIFEST.csv").open(newline="") as file:
        stated = {row["path"]: int(row["frames"]) for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as folder:
        result = run(data, "--out", f"{folder}/store", "--size", "16", "--split", "test", "--test-fraction", "0.15")
        assert result.exit_code == 0
        clips = VideoStore.open(f"{folder}/store").clips
    assert len(clips) > 20
    assert {c.id: c.num_frames for c in clips} == {c.id: stated[c.id] for c in clips}
