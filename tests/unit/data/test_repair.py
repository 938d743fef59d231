"""A store whose files were damaged after they were made: the same command makes the damaged shards again."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hpdm_core.data.clip import Recipe
from hpdm_core.data.disk import writing_to
from hpdm_core.data.prepare import Progress, prepare_share, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.data.store import VideoStore
from hpdm_core.errors import ConfigError, DataError, HpdmError
from tests.support.videos import sample_video, write_lossless
from tests.unit.data.test_prepare import ONE, RECIPE, contents, made

SCAN = scan_source(SourceOptions(kind="synthetic", num_clips=20, num_frames=2))
JPEG = Recipe(RECIPE.sizes, "jpeg")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (RECIPE, "00001-16x16.npy"),
        (RECIPE, "00000.json"),
        (JPEG, "00000-32x32.jpegs"),
        (JPEG, "00001-16x16.offsets.npy"),
    ],
)
def test_the_same_command_makes_a_damaged_shard_again(
    tmp_path: Path, recipe: Recipe, name: str, damage: Callable[[Path], None]
) -> None:
    prepare_store(SCAN, tmp_path, recipe, ONE)
    whole = contents(tmp_path)
    damage(tmp_path / "shards" / name)
    seen: list[Progress] = []
    prepare_store(SCAN, tmp_path, recipe, ONE, on_progress=seen.append)
    assert seen[0].resumed == (16 if name.startswith("00001") else 4)  # the other shard stands
    assert contents(tmp_path) == whole


def garble(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("recipe", "name"),
    [(RECIPE, "00001-32x32.npy"), (JPEG, "00001-32x32.jpegs"), (JPEG, "00001-32x32.offsets.npy")],
)
def test_damage_that_no_length_betrays_is_mended_as_the_hint_says(tmp_path: Path, recipe: Recipe, name: str) -> None:
    prepare_store(SCAN, tmp_path, recipe, ONE)
    whole = contents(tmp_path)
    garble(tmp_path / "shards" / name)
    prepare_store(SCAN, tmp_path, recipe, ONE)
    with pytest.raises(DataError, match=r"shards/00001-32x32.* is damaged") as caught:
        VideoStore.open(tmp_path).read_frames(16)
    found = re.fullmatch(r"delete (\S+) and run the hpdm prepare-data command that made .* again", caught.value.hint)
    assert found
    files = glob.glob(found[1])
    assert {Path(file).name.partition("-")[0] for file in files} == {"00001"}
    for file in files:
        Path(file).unlink()
    prepare_store(SCAN, tmp_path, recipe, ONE)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("name", ["00001-16x16.npy", "00001.json"])
def test_a_share_does_not_complete_a_store_that_another_share_must_mend(tmp_path: Path, name: str) -> None:
    prepare_store(SCAN, tmp_path, RECIPE, ONE)
    whole = contents(tmp_path)
    cut(tmp_path / "shards" / name)
    assert prepare_share(SCAN, tmp_path, RECIPE, ONE, (1, 2)) is None
    assert prepare_share(SCAN, tmp_path, RECIPE, ONE, (2, 2)) is not None
    assert contents(tmp_path) == whole


def test_a_damaged_shard_of_other_sources_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write_lossless(tmp_path / "src" / "a.avi", sample_video(frames=2))
    made(tmp_path / "store", path=tmp_path / "src")
    cut(tmp_path / "store" / "shards" / "00000-16x16.npy")
    write_lossless(tmp_path / "src" / "a.avi", sample_video(frames=9))
    with pytest.raises(ConfigError, match="other files"):
        made(tmp_path / "store", path=tmp_path / "src")


@pytest.mark.parametrize(
    ("number", "kind", "frees"),
    [
        (errno.ENOSPC, DataError, True),
        (errno.EDQUOT, DataError, True),
        (errno.EIO, DataError, False),
        (errno.ENOTDIR, ConfigError, False),
        (errno.EACCES, ConfigError, False),
    ],
)
def test_only_a_full_disk_asks_for_space(tmp_path: Path, number: int, kind: type[HpdmError], frees: bool) -> None:
    with pytest.raises(kind, match="cannot write to") as caught, writing_to(tmp_path):
        raise OSError(number, "words")
    assert caught.value.exit_code == kind.exit_code
    assert ("free some space" in caught.value.hint) == frees


def test_a_store_below_a_file_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "junk").touch()
    with pytest.raises(ConfigError, match="Not a directory") as caught:
        prepare_store(SCAN, tmp_path / "junk" / "x", RECIPE, ONE)
    assert "space" not in caught.value.hint
