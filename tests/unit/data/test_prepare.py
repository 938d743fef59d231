"""Preparing stores: pixels, resumption, quarantine, thresholds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data import prepare
from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, Progress, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.data.store import VideoStore
from hpdm_core.data.synthetic import render_clip
from hpdm_core.errors import ConfigError, DataError
from hpdm_core.video import halve_frames, resize_frames
from tests.support.videos import sample_video, write_lossless

RECIPE = Recipe(((32, 32), (16, 16)))
ONE = PrepareOptions(workers=1)
REPOSITORY = Path(__file__).parents[3]


def made(out: Path, *, recipe: Recipe = RECIPE, options: PrepareOptions = ONE, **source: object) -> VideoStore:
    prepare_store(scan_source(SourceOptions(**source)), out, recipe, options)  # type: ignore[arg-type]
    return VideoStore.open(out)


def contents(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_every_level_holds_the_resized_frames(tmp_path: Path) -> None:
    video = sample_video(frames=19, size=(48, 90))
    write_lossless(tmp_path / "a.avi", video)
    store = made(tmp_path / "store", path=tmp_path / "a.avi")
    finest = resize_frames(video, (32, 32))
    assert store.sizes == ((32, 32), (16, 16))
    assert np.array_equal(store.read_frames(0), finest)
    assert np.array_equal(store.read_frames(0, (16, 16)), halve_frames(finest))
    clip = store.clips[0]
    assert (clip.num_frames, clip.fps, clip.width, clip.height, clip.label) == (19, 25.0, 90, 48, None)
    assert clip.decoder.split()[0] in ("decord", "av")
    assert clip.source == "a.avi"


def test_the_shards_are_plain_npy(tmp_path: Path) -> None:
    made(tmp_path / "store", kind="synthetic", num_clips=3, num_frames=5)
    frames = np.load(tmp_path / "store" / "shards" / "00000-32x32.npy")
    assert frames.shape == (15, 32, 32, 3)
    assert np.array_equal(frames[5:10], render_clip(0, 1, 5, (32, 32))[0])


def test_scenes_keep_all_their_captions(tmp_path: Path) -> None:
    store = made(tmp_path / "store", kind="synthetic", style="scenes", num_clips=3, num_frames=4, frame_step=8)
    for index, clip in enumerate(store.clips):
        video, info = render_clip(0, index, 4, (32, 32), "scenes", 8)
        assert clip.captions == info.captions
        assert len(clip.captions) == 4
        assert (clip.label, clip.fps) == (info.label, 1.5)
        assert np.array_equal(store.read_frames(index), video)


def test_a_folder_of_mixed_frame_sizes(tmp_path: Path) -> None:
    (tmp_path / "src" / "clip").mkdir(parents=True)
    frames = [sample_video(frames=1, size=size)[0] for size in ((40, 40), (50, 70))]
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "src" / "clip" / f"{i}.png")
    store = made(tmp_path / "store", path=tmp_path / "src")
    expected = np.concatenate([resize_frames(frame[None], (32, 32)) for frame in frames])
    assert np.array_equal(store.read_frames(0), expected)
    assert store.clips[0].fps is None


def test_max_frames_and_stretch(tmp_path: Path) -> None:
    video = sample_video(frames=30, size=(48, 90))
    write_lossless(tmp_path / "a.avi", video)
    recipe = Recipe(((32, 32),), fit="stretch", max_frames=7)
    store = made(tmp_path / "store", recipe=recipe, path=tmp_path / "a.avi")
    assert np.array_equal(store.read_frames(0), resize_frames(video[:7], (32, 32), fit="stretch"))


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    recipe = Recipe(RECIPE.sizes, "jpeg")
    for workers in (1, 3):
        options = PrepareOptions(workers=workers)
        made(tmp_path / str(workers), recipe=recipe, options=options, kind="synthetic", num_clips=40, num_frames=3)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_an_interrupted_preparation_continues_and_ends_the_same(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_late(progress: Progress) -> None:
        if progress.done >= 25:
            raise Stop

    source = SourceOptions(kind="synthetic", num_clips=40, num_frames=4)
    scan = scan_source(source)
    prepare_store(scan, tmp_path / "whole", RECIPE, ONE)
    with pytest.raises(Stop):
        prepare_store(scan, tmp_path / "broken", RECIPE, ONE, on_progress=stop_late)
    with pytest.raises(DataError, match="not finished"):
        VideoStore.open(tmp_path / "broken")
    finished = tmp_path / "broken" / "shards" / "00000-32x32.npy"
    before = finished.stat()
    seen: list[Progress] = []
    prepare_store(scan, tmp_path / "broken", RECIPE, ONE, on_progress=seen.append)
    assert seen[0].resumed == 16
    assert (finished.stat().st_mtime_ns, finished.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_stop_loses_no_clip_that_another_worker_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stop(Exception):
        pass

    root = tmp_path / "src"
    root.mkdir()
    first = write_lossless(root / "a00.avi", sample_video(frames=2))
    for name in (*(f"a{i:02d}.avi" for i in range(1, 15)), "b_slow.avi", "c.avi"):  # b_slow ends the first shard
        shutil.copy(first, root / name)
    (root / "wait").touch()
    recipe = Recipe(RECIPE.sizes, backends=("tests.support.decoders:waiting",))
    options = PrepareOptions(workers=2)

    def stop_at_the_slow_one(progress: Progress) -> None:
        if progress.done == 16 and threading.current_thread() is threading.main_thread():  # as Ctrl-C does
            raise Stop

    scan = scan_source(SourceOptions(path=root, kind="folder"))
    with caplog.at_level("INFO", logger="hpdm_core"), pytest.raises(Stop):
        prepare_store(scan, tmp_path / "broken", recipe, options, on_progress=stop_at_the_slow_one)
    assert "crashed" not in caplog.text
    assert not (tmp_path / "broken" / "shards" / "00000.json").exists()
    (root / "wait").unlink()
    prepare_store(scan, tmp_path / "broken", recipe, options)
    prepare_store(scan, tmp_path / "whole", recipe, options)
    assert len(VideoStore.open(tmp_path / "broken")) == 17
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_the_same_command_tries_again_what_may_succeed_now(tmp_path: Path) -> None:
    root = tmp_path / "src"
    root.mkdir()
    for name in ("a.avi", "b_slow.avi"):
        write_lossless(root / name, sample_video(frames=2))
    (root / "bad.mp4").write_text("no video")
    (root / "wait").touch()
    recipe = Recipe(RECIPE.sizes, backends=("tests.support.decoders:waiting",))
    source = {"path": root, "kind": "folder", "recipe": recipe}
    with pytest.raises(DataError, match="1 timeout") as caught:
        made(tmp_path / "store", options=PrepareOptions(max_bad=1, deadline=3, workers=1), **source)
    assert "the same command tries 1 of them again, --deadline gives them longer" in caught.value.hint
    accepted = made(tmp_path / "store", options=PrepareOptions(max_bad=2, deadline=3, workers=1), **source)
    assert [c.id for c in accepted.clips] == ["a.avi"]
    (root / "wait").unlink()
    store = made(tmp_path / "store", options=PrepareOptions(max_bad=1, workers=1), **source)
    assert [c.id for c in store.clips] == ["a.avi", "b_slow.avi"]
    whole = made(tmp_path / "whole", options=PrepareOptions(max_bad=1, workers=1), **source)
    assert contents(store.path) == contents(whole.path)


def test_other_files_of_the_same_names_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "src"
    root.mkdir()
    write_lossless(root / "a.avi", sample_video(0, frames=2))
    (root / "b.avi").write_text("no video")
    options = PrepareOptions(max_bad=1, workers=1)
    made(tmp_path / "store", options=options, path=root)
    write_lossless(root / "b.avi", sample_video(1, frames=2))  # a bad file may be mended
    assert len(made(tmp_path / "store", options=options, path=root)) == 2
    moved = root.rename(tmp_path / "moved")  # and a source may move
    assert len(made(tmp_path / "store", options=options, path=moved)) == 2
    write_lossless(moved / "a.avi", sample_video(0, frames=9))
    with pytest.raises(ConfigError, match=r"other files: a\.avi is not the size it was"):
        made(tmp_path / "store", options=options, path=moved)


def test_whatever_a_decoder_raises_costs_one_clip(tmp_path: Path) -> None:
    root = tmp_path / "src"
    root.mkdir()
    for name in ("disk", "good", "memory", "own", "value"):
        write_lossless(root / f"{name}.avi", sample_video(frames=2))
    recipe = Recipe(RECIPE.sizes, backends=("tests.support.decoders:failing",))
    store = made(tmp_path / "store", recipe=recipe, options=PrepareOptions(max_bad=4, workers=1), path=root)
    assert [c.id for c in store.clips] == ["good.avi"]
    found = [json.loads(line) for line in (store.path / "quarantine.jsonl").read_text().splitlines()]
    assert {q["path"]: q["reason"] for q in found} == {
        "disk.avi": "unreadable",
        "memory.avi": "out-of-memory",
        "own.avi": "decode-error",
        "value.avi": "decode-error",
    }
    details = {q["path"]: q["detail"] for q in found}
    assert details["value.avi"] == "ValueError: buffer is too small"
    assert "1 and 2" in details["own.avi"]


def test_a_decoder_that_does_not_exist_stops_the_run(tmp_path: Path) -> None:
    write_lossless(tmp_path / "a.avi", sample_video(frames=2))
    recipe = Recipe(RECIPE.sizes, backends=("tests.support.decoders:no_such_function",))
    with pytest.raises(ConfigError, match="no_such_function"):
        made(tmp_path / "store", recipe=recipe, path=tmp_path / "a.avi")


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_kill_minus_nine_and_again(tmp_path: Path) -> None:
    source = {"kind": "synthetic", "num_clips": 60, "num_frames": 8}
    made(tmp_path / "whole", **source)
    program = (
        "import sys; from pathlib import Path; from tests.unit.data.test_prepare import made;"
        f"made(Path(sys.argv[1]), **{source!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "killed")], cwd=REPOSITORY)
    marker = tmp_path / "killed" / "shards" / "00001.json"
    deadline = time.monotonic() + 60
    while not marker.exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    made(tmp_path / "killed", **source)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_store_is_left_alone(tmp_path: Path) -> None:
    source = {"kind": "synthetic", "num_clips": 3, "num_frames": 2}
    made(tmp_path / "store", **source)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "shards").iterdir()}
    made(tmp_path / "store", **source)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "shards").iterdir()} == before


def test_other_settings_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "store", kind="synthetic", num_clips=3, num_frames=2)
    with pytest.raises(ConfigError, match="codec was raw, is jpeg"):
        made(tmp_path / "store", recipe=Recipe(RECIPE.sizes, "jpeg"), kind="synthetic", num_clips=3, num_frames=2)
    with pytest.raises(ConfigError, match="num_clips was 3, is 4"):
        made(tmp_path / "store", kind="synthetic", num_clips=4, num_frames=2)
    with pytest.raises(ConfigError, match="list of clips has changed"):
        made(tmp_path / "store", kind="synthetic", num_clips=3, num_frames=2, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty"):
        made(tmp_path / "mine", kind="synthetic")
    with pytest.raises(ConfigError, match="is a file"):
        made(tmp_path / "mine" / "thesis.tex", kind="synthetic")


def test_one_preparation_at_a_time(tmp_path: Path) -> None:
    scan = scan_source(SourceOptions(kind="synthetic", num_clips=1, num_frames=1))
    met: list[str] = []

    def again(progress: Progress) -> None:
        if not met:
            with pytest.raises(ConfigError) as caught:
                prepare_store(scan, tmp_path / "store", RECIPE, ONE)
            met.append(str(caught.value))

    prepare_store(scan, tmp_path / "store", RECIPE, ONE, on_progress=again)
    assert "another process is preparing" in met[0]


def bad_folder(root: Path, good: int, bad: int) -> Path:
    root.mkdir()
    for i in range(good):
        write_lossless(root / f"good{i}.avi", sample_video(i, frames=2))
    for i in range(bad):
        (root / f"bad{i}.mp4").write_text("no video")
    return root


def test_too_many_bad_files_end_in_an_error_after_all_were_tried(tmp_path: Path) -> None:
    source = {"path": bad_folder(tmp_path / "src", 3, 2)}
    with pytest.raises(DataError, match=r"2 of 5 clips could not be used \(2 not-a-video\)") as caught:
        made(tmp_path / "store", options=PrepareOptions(max_bad=1, workers=1), **source)
    assert "--max-bad 2" in caught.value.hint
    quarantine = [json.loads(line) for line in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert [(q["path"], q["reason"]) for q in quarantine] == [("bad0.mp4", "not-a-video"), ("bad1.mp4", "not-a-video")]
    with pytest.raises(DataError, match="not finished"):
        VideoStore.open(tmp_path / "store")
    assert len(made(tmp_path / "store", options=PrepareOptions(max_bad=2, workers=1), **source)) == 3


def test_a_share_of_bad_files_may_be_allowed(tmp_path: Path) -> None:
    source = {"path": bad_folder(tmp_path / "src", 3, 1)}
    with pytest.raises(DataError, match="1 of 4"):
        made(tmp_path / "store", options=PrepareOptions(max_bad=0.24, workers=1), **source)
    assert len(made(tmp_path / "store", options=PrepareOptions(max_bad=0.25, workers=1), **source)) == 3


def test_nothing_left_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable clip: all 2 failed"):
        made(tmp_path / "store", options=PrepareOptions(max_bad=1.0, workers=1), path=bad_folder(tmp_path / "s", 0, 2))


def test_hanging_and_crashing_decoders_are_survived(tmp_path: Path) -> None:
    root = tmp_path / "src"
    root.mkdir()
    for name in ("a.avi", "b_hang.avi", "c_crash.avi", "d.avi"):
        write_lossless(root / name, sample_video(frames=3))
    recipe = Recipe(RECIPE.sizes, backends=("tests.support.videos:hanging_backend",))
    start = time.monotonic()
    store = made(
        tmp_path / "store", recipe=recipe, options=PrepareOptions(max_bad=2, deadline=1.0, workers=1), path=root
    )
    assert time.monotonic() - start < 60
    assert [c.id for c in store.clips] == ["a.avi", "d.avi"]
    assert np.array_equal(store.read_frames(0), store.read_frames(1))
    quarantine = [json.loads(line) for line in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert [q["reason"] for q in quarantine] == ["timeout", "crashed"]


def test_a_procedural_clip_that_fails_costs_itself(tmp_path: Path) -> None:
    """Those of a shard are made in one call, and one by one where that fails."""
    scan = scan_source(SourceOptions(kind="synthetic", style="scenes", num_clips=4, num_frames=3))
    clips = list(scan.clips)
    assert clips[1].synthetic is not None
    clips[1] = replace(clips[1], synthetic=replace(clips[1].synthetic, frames=0))
    options = PrepareOptions(max_bad=1, workers=1)
    summary = prepare_store(replace(scan, clips=tuple(clips)), tmp_path / "store", RECIPE, options)
    assert (summary.num_clips, summary.reasons) == (3, {"decode-error": 1})
    store = VideoStore.open(tmp_path / "store")
    for number, index in enumerate((0, 2, 3)):
        assert np.array_equal(store.read_frames(number), render_clip(0, index, 3, (32, 32), "scenes")[0])


def test_a_full_disk_is_no_corrupt_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: prepare.ShardBuilder) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.ShardBuilder, "finish", full)
    with pytest.raises(DataError, match=r"cannot write to .*store: No space"):
        made(tmp_path / "store", kind="synthetic", num_clips=2, num_frames=2)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_fills_up_under_a_decoder_stops_the_run(tmp_path: Path) -> None:
    import resource

    scan = scan_source(SourceOptions(kind="synthetic", num_clips=2, num_frames=9))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the child process inherits it
    try:
        with pytest.raises(DataError, match=r"cannot write to .*shards: File too large"):
            prepare_store(scan, tmp_path / "store", RECIPE, ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "store" / "quarantine.jsonl").exists()


def test_a_store_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"cannot write to .*store: Read-only") as caught:
        made(tmp_path / "store", kind="synthetic", num_clips=2, num_frames=2)
    assert caught.value.hint


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    made(tmp_path / "store", kind="synthetic", num_clips=2, num_frames=2)
    (tmp_path / "store" / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan\.json cannot be read"):
        made(tmp_path / "store", kind="synthetic", num_clips=2, num_frames=2)


def test_broken_frames_are_quarantined(tmp_path: Path) -> None:
    for name in ("good", "bad", "cut"):
        (tmp_path / "src" / name).mkdir(parents=True)
        Image.fromarray(sample_video(frames=1)[0]).save(tmp_path / "src" / name / "0.jpg")
    (tmp_path / "src" / "bad" / "1.jpg").write_text("text")
    whole = (tmp_path / "src" / "cut" / "0.jpg").read_bytes()
    (tmp_path / "src" / "cut" / "1.jpg").write_bytes(whole[:-200])
    made(tmp_path / "store", options=PrepareOptions(max_bad=2, workers=1), path=tmp_path / "src")
    quarantine = [json.loads(line) for line in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert [(q["path"], q["reason"]) for q in quarantine] == [("bad", "not-an-image"), ("cut", "truncated")]


@pytest.mark.parametrize("module", ["clip", "prepare"])
def test_preparing_does_not_load_torch(module: str) -> None:
    """It would take longer than preparing a small store; and a decoding process is started anew after every hang."""
    program = f"import sys, hpdm_core.data.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False).returncode == 0
