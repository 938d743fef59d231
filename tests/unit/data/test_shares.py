"""Many jobs and many machines prepare one store: the bytes are those of a single run."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpdm_core.data.claim import claimed, store_plan
from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, Progress, Scan, prepare_share, prepare_store
from hpdm_core.data.shard import ShardBuilder, write_text_once
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.data.store import VideoStore
from hpdm_core.errors import ConfigError, DataError
from hpdm_core.video import frame_pyramid_sizes
from tests.support.videos import sample_video, write_lossless
from tests.unit.data.test_prepare import ONE, RECIPE, contents

REPOSITORY = Path(__file__).parents[3]
BIG = Recipe(((64, 64), (32, 32)), "jpeg")


def synthetic(num_clips: int, num_frames: int = 3) -> Scan:
    return scan_source(SourceOptions(kind="synthetic", num_clips=num_clips, num_frames=num_frames))


def test_shares_in_any_order_make_the_store_of_one_run(tmp_path: Path) -> None:
    scan = synthetic(60)
    prepare_store(scan, tmp_path / "whole", RECIPE, ONE)
    seen: list[Progress] = []
    for index in (3, 1):
        assert prepare_share(scan, tmp_path / "shares", RECIPE, ONE, (index, 3), on_progress=seen.append) is None
        with pytest.raises(DataError, match="not finished"):
            VideoStore.open(tmp_path / "shares")
    assert (seen[-1].done, seen[-1].total) == (28, 28)  # shards 0 and 3: 16 + 12 clips
    summary = prepare_share(scan, tmp_path / "shares", RECIPE, ONE, (2, 3))
    assert summary is not None
    assert summary.num_clips == 60
    assert contents(tmp_path / "shares") == contents(tmp_path / "whole")


def test_a_whole_run_completes_what_a_lost_job_left(tmp_path: Path) -> None:
    scan = synthetic(40)
    prepare_store(scan, tmp_path / "whole", RECIPE, ONE)
    prepare_share(scan, tmp_path / "shares", RECIPE, ONE, (1, 2))
    seen: list[Progress] = []
    prepare_store(scan, tmp_path / "shares", RECIPE, ONE, on_progress=seen.append)
    assert seen[0].resumed == 24  # shards 0 and 2
    assert contents(tmp_path / "shares") == contents(tmp_path / "whole")


def test_more_shares_than_shards(tmp_path: Path) -> None:
    scan = synthetic(2)
    assert prepare_share(scan, tmp_path / "store", RECIPE, ONE, (5, 5)) is None
    assert prepare_share(scan, tmp_path / "store", RECIPE, ONE, (1, 5)) is not None
    assert prepare_share(scan, tmp_path / "store", RECIPE, ONE, (2, 5)) is not None


def test_jobs_at_the_same_moment(tmp_path: Path) -> None:
    """As an array of jobs starts them, from the command line; exactly the last ones report the store."""
    words = ["prepare-data", "--source", "synthetic", "--num", "40", "--frames", "2", "--size", "32", "--workers", "1"]
    command = [sys.executable, "-m", "hpdm_cli", *words, "--out", str(tmp_path / "store"), "--shards"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen([*command, f"{i}/3"], env=environment, **pipes) for i in (1, 2, 3)]
    answers = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], answers
    finished = [out for out, _ in answers if out]
    assert finished
    assert all("kept         40 clips, 80 frames" in out for out in finished)
    command_line = "hpdm prepare-data --size 32 --num 40 --frames 2 --source synthetic"
    recipe = Recipe(frame_pyramid_sizes((32, 32)))
    prepare_store(synthetic(40, 2), tmp_path / "whole", recipe, ONE, command=command_line)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_share_and_a_whole_run_exclude_each_other(tmp_path: Path) -> None:
    scan = synthetic(2)
    with claimed(tmp_path / "store", store_plan(scan, RECIPE), shared=True):
        with pytest.raises(ConfigError, match="another process is preparing"):
            prepare_store(scan, tmp_path / "store", RECIPE, ONE)
        prepare_share(scan, tmp_path / "store", RECIPE, ONE, (2, 2))
    prepare_store(scan, tmp_path / "store", RECIPE, ONE)


def test_the_first_plan_wins(tmp_path: Path) -> None:
    write_text_once(tmp_path / "plan.json", "first")
    write_text_once(tmp_path / "plan.json", "second")
    assert (tmp_path / "plan.json").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_orphan_of_an_earlier_attempt_cannot_reach_the_next(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (clip,) = synthetic(1).clips
    first = ShardBuilder(tmp_path, 0, RECIPE).job(clip)
    second = ShardBuilder(tmp_path, 0, RECIPE).job(clip)
    assert not set(first.files) & set(second.files)
    assert [path.exists() for path in first.files] == [False, False]


def ray_workers(text: str) -> list[int]:
    """Process ids of the workers that the log names."""
    return [int(line.split()[-2]) for line in text.splitlines() if "ray worker" in line and "started" in line]


def test_ray_makes_the_same_bytes_though_a_worker_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    (tmp_path / "films").mkdir()
    for index in range(40):  # files, which are decoded one a call: procedural clips would be made a shard a call
        write_lossless(tmp_path / "films" / f"{index}.avi", sample_video(index, 4, (64, 64)))
    films = scan_source(SourceOptions(kind="folder", path=tmp_path / "films"))
    caplog.set_level(logging.INFO, "hpdm_core.data")
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        if progress.done >= 5 and not killed:  # whoever made these five is still at its first shard of 16
            killed.append(ray_workers(caplog.text)[0])
            os.kill(killed[0], signal.SIGKILL)

    options = PrepareOptions(workers=2, engine="ray")
    prepare_store(films, tmp_path / "store", BIG, options, on_progress=kill_one)
    processes = ray_workers(caplog.text)
    assert len(set(processes) - {os.getpid()}) == 3  # two, and the one that took the place of the killed
    assert caplog.text.count("is begun anew: a ray worker was lost") == 1
    prepare_store(films, tmp_path / "whole", BIG, ONE)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from hpdm_cli.app import app

    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["prepare-data", "--source", "synthetic", "--num", "1", "--frames", "1", "--size", "16", "--engine", "ray"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "store")])
    assert result.exit_code == 2
    assert "needs the package ray" in result.stderr
    assert "hpdm[ray]" in result.stderr


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b", "1/0"])
def test_shares_that_make_no_sense(tmp_path: Path, text: str) -> None:
    from typer.testing import CliRunner

    from hpdm_cli.app import app

    result = CliRunner().invoke(app, ["prepare-data", "--source", "synthetic", "--out", "s", "--shards", text])
    assert result.exit_code == 2
    assert "for example 3/8" in result.stderr
