"""Reading stores: windows, damage, what is missing."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpdm_core.data import store as store_module
from hpdm_core.data.store import VideoStore
from hpdm_core.data.survey import length_histogram, survey_store, verify_store
from hpdm_core.data.synthetic import CLASSES, render_clip
from hpdm_core.data.window import Window
from hpdm_core.errors import DataError, StoreMismatch
from hpdm_core.video import halve_frames


def test_index_tells_what_was_rendered(raw_store: VideoStore) -> None:
    assert raw_store.sizes == ((32, 48), (16, 24))
    assert raw_store.classes == CLASSES
    assert len(raw_store) == 20
    for i, clip in enumerate(raw_store.clips):
        _, info = render_clip(3, i, 12, (32, 48))
        assert (clip.index, clip.label, clip.captions, clip.fps) == (i, info.label, (info.caption,), info.fps)


def test_windows_of_raw_stores_are_exact(raw_store: VideoStore) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        index, level = int(rng.integers(20)), int(rng.integers(2))
        video = render_clip(3, index, 12, (32, 48))[0]
        video = video if level == 0 else halve_frames(video)
        size = raw_store.sizes[level]
        frames, stride = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        start = int(rng.integers(12 - (frames - 1) * stride))
        height, width = int(rng.integers(1, size[0] + 1)), int(rng.integers(1, size[1] + 1))
        top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        got = raw_store.read(index, Window(size, start, stride, frames, top, left, height, width))
        chosen = video[start : start + (frames - 1) * stride + 1 : stride]
        assert np.array_equal(got, chosen[:, top : top + height, left : left + width])
        assert got.flags.owndata
        assert got.flags.writeable


def test_jpeg_stores_are_close_and_smaller(raw_store: VideoStore, jpeg_store: VideoStore) -> None:
    window = Window((32, 48), 1, 2, 5, 3, 4, 16, 20)
    for index in range(20):
        exact, close = raw_store.read(index, window), jpeg_store.read(index, window)
        assert close.shape == exact.shape
        assert np.abs(close.astype(int) - exact).mean() < 4
    size = [sum(p.stat().st_size for p in (s.path / "shards").iterdir()) for s in (raw_store, jpeg_store)]
    assert size[1] < size[0] / 2


def test_stores_pickle_without_their_maps(raw_store: VideoStore) -> None:
    raw_store.read_frames(0)
    data = pickle.dumps(raw_store)
    assert len(data) < 50_000
    again = pickle.loads(data)
    assert again.fingerprint == raw_store.fingerprint
    assert np.array_equal(again.read_frames(17, (16, 24)), raw_store.read_frames(17, (16, 24)))


def test_few_files_stay_open(raw_store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_OPEN_FILES", 2)
    store = VideoStore.open(raw_store.path)
    for index in (0, 17, 0, 17):
        for size in store.sizes:
            assert np.array_equal(store.read_frames(index, size), raw_store.read_frames(index, size))
        assert len(store._readers) <= 2


def test_fingerprints_tell_codecs_apart_and_nothing_else(raw_store: VideoStore, jpeg_store: VideoStore) -> None:
    assert raw_store.fingerprint != jpeg_store.fingerprint
    assert VideoStore.open(raw_store.path).fingerprint == raw_store.fingerprint


def test_an_absent_size_names_the_command(raw_store: VideoStore) -> None:
    with pytest.raises(StoreMismatch, match="no frames of 64x64; it holds 32x48, 16x24") as caught:
        raw_store.require_sizes([(64, 64), (16, 24)])
    assert "hpdm prepare-data" in caught.value.hint
    assert f"--size 64x64 --codec raw --out {raw_store.path}-64x64" in caught.value.hint
    with pytest.raises(StoreMismatch):
        raw_store.read_frames(0, (8, 8))


def test_the_command_for_an_absent_size_names_no_option_twice(raw_store: VideoStore) -> None:
    command = "hpdm prepare-data 'my src' --size 32x48 --levels 2 --codec raw --max-frames 12"
    store = VideoStore(raw_store.path, raw_store.about | {"command": command}, raw_store.clips)
    with pytest.raises(StoreMismatch) as caught:
        store.require_sizes([(64, 64)])
    line = f"hpdm prepare-data 'my src' --max-frames 12 --size 64x64 --codec raw --out {raw_store.path}-64x64"
    assert caught.value.hint == f"prepare one that has: {line}"


@pytest.mark.parametrize(
    "window",
    [
        Window((32, 48), -1, 1, 2, 0, 0, 8, 8),
        Window((32, 48), 10, 1, 3, 0, 0, 8, 8),
        Window((32, 48), 0, 4, 4, 0, 0, 8, 8),
        Window((32, 48), 0, 1, 1, 25, 0, 8, 8),
        Window((32, 48), 0, 1, 1, 0, 41, 8, 8),
        Window((32, 48), 0, 0, 1, 0, 0, 8, 8),
    ],
)
def test_windows_outside_the_clip_are_refused(raw_store: VideoStore, window: Window) -> None:
    with pytest.raises(ValueError, match="not inside"):
        raw_store.read(0, window)


@pytest.fixture
def copy(raw_store: VideoStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(raw_store.path, tmp_path / "copy"))


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damage_is_named(copy: Path) -> None:
    change_json(copy / "store.json", schema=99)
    with pytest.raises(DataError, match="schema 99"):
        VideoStore.open(copy)
    (copy / "store.json").write_text("{")
    with pytest.raises(DataError, match=r"store\.json is damaged"):
        VideoStore.open(copy)
    (copy / "store.json").write_text('{"schema": 1}')
    with pytest.raises(DataError, match="no codec"):
        VideoStore.open(copy)
    (copy / "store.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        VideoStore.open(copy)
    with pytest.raises(DataError, match="no store at"):
        VideoStore.open(copy / "elsewhere")


@pytest.mark.parametrize("what", ["cut", "edited", "garbled", "missing"])
def test_a_damaged_index_is_named(copy: Path, what: str) -> None:
    index = copy / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    edited = lines[0].replace('"label": 0', '"label": 1')
    assert edited != lines[0]
    broken = {"cut": lines[:-1], "edited": [edited, *lines[1:]], "garbled": [*lines[:-1], '{"id": 3}\n']}
    if what == "missing":
        index.unlink()
    else:
        index.write_text("".join(broken[what]))
    with pytest.raises(DataError, match=r"index\.jsonl is damaged"):
        VideoStore.open(copy)


def test_a_damaged_shard_is_named(copy: Path) -> None:
    shard = copy / "shards" / "00001-32x48.npy"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    store = VideoStore.open(copy)
    assert store.read_frames(0).shape == (12, 32, 48, 3)
    with pytest.raises(DataError, match=r"00001-32x48\.npy is damaged: it has"):
        store.read_frames(16)
    shard.unlink()
    with pytest.raises(DataError, match="it is missing"):
        store.read_frames(16)


def test_verify_finds_one_changed_bit(copy: Path) -> None:
    assert verify_store(VideoStore.open(copy)) == []
    shard = copy / "shards" / "00000-16x24.npy"
    data = bytearray(shard.read_bytes())
    data[128 + 12 * 16 * 24 * 3 + 5] ^= 1  # in the second clip
    shard.write_bytes(data)
    store = VideoStore.open(copy)
    assert verify_store(store) == [f"{store.clips[1].id}: checksum of the 16x24 frames is wrong"]


def test_damaged_jpeg_frames_are_named(jpeg_store: VideoStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(jpeg_store.path, tmp_path / "copy"))
    blob = path / "shards" / "00000-32x48.jpegs"
    blob.write_bytes(bytes(blob.stat().st_size))
    store = VideoStore.open(path)
    with pytest.raises(DataError, match="frame 0 is damaged"):
        store.read_frames(0)
    assert len(verify_store(store)) == 16


def test_survey_counts(raw_store: VideoStore) -> None:
    seen: list[int] = []
    survey = survey_store(raw_store, lambda: seen.append(1))
    assert len(seen) == survey.num_clips == 20
    assert survey.num_frames == 240
    assert survey.lengths == {(8, 15): 20}
    assert survey.rates == {"12": 20}
    assert survey.classes == dict.fromkeys(CLASSES, 2)
    assert survey.decoders == {"synthetic": 20}
    assert (survey.duplicates, survey.black, survey.static) == ((), (), ())


def test_length_bins_double() -> None:
    assert length_histogram([1, 2, 3, 4, 48, 48]) == {
        (1, 1): 1,
        (2, 3): 2,
        (4, 7): 1,
        (8, 15): 0,
        (16, 31): 0,
        (32, 63): 2,
    }
    assert length_histogram([]) == {}
