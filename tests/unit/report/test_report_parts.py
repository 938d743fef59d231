"""Pictures, pages, grids and neighbours."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data.write import tile_videos, write_npz
from hpdm_core.errors import DataError
from hpdm_core.report.markup import Section, page, table
from hpdm_core.report.media import clip_picture, clip_uri, heat_image, image_uri, shrunk
from hpdm_core.report.neighbours import relative_distances
from hpdm_core.report.reading import Subject, read_log, read_subject, split_grid, titled
from hpdm_core.report.sections import clock


def video(frames: int = 6, height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 255, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return low.repeat(8, axis=1).repeat(8, axis=2)


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(";base64,")
    assert head.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("webp", [True, False])
def test_a_clip_plays_all_its_frames_at_its_speed(webp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not webp:
        monkeypatch.setattr("hpdm_core.report.media.features.check", lambda name: False)
    image = opened(clip_uri(video(), fps=10.0))
    assert image.format == ("WEBP" if webp else "GIF")
    assert image.n_frames == 6
    assert image.info["loop"] == 0
    image.seek(1)
    image.load()
    assert image.info["duration"] == 100
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - video()[1])
    assert difference.mean() < 12


def test_big_clips_shrink_and_keep_their_speed() -> None:
    small, fps = shrunk(np.zeros((100, 64, 512, 3), np.uint8), 30.0, max_side=128)
    assert small.shape == (34, 16, 128, 3)
    assert fps == 10.0
    same, fps = shrunk(video(), 5.0, max_side=128)
    assert np.array_equal(same, video())
    assert fps == 5.0


def test_pictures_stand_still_for_those_who_asked_and_escape_their_text() -> None:
    html = clip_picture(video(), 5.0, '"><script>')
    assert 'media="(prefers-reduced-motion: reduce)"' in html
    assert "<script>" not in html
    assert 'width="32" height="24"' in html


def test_heat_goes_from_dark_to_bright() -> None:
    image = heat_image(np.array([[0.0, 2.0, 4.0, 400.0]]), 4.0)
    brightness = image.astype(int).sum(-1)[0]
    assert brightness[0] < brightness[1] < brightness[2] == brightness[3]
    assert opened(image_uri(image)).size == (4, 1)


def test_pages_and_tables_escape_what_they_are_told() -> None:
    text = page("<i>", "a & b", [Section("x", "<u>", table(["<h>"], [["<r>", "1"]]), "<n>")])
    for tag in ("<i>", "<u>", "<h>", "<r>", "<n>"):
        assert tag not in text
    assert "a &amp; b" in text
    assert text.startswith("<!doctype html>")
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_grid_comes_apart_into_its_videos() -> None:
    for num in (1, 3, 4, 6):
        videos = np.stack([video(seed=i) for i in range(num)])
        parts = split_grid(tile_videos(videos, columns=min(num, 4)), num)
        assert len(parts) == num
        assert all(np.array_equal(a, b) for a, b in zip(parts, videos, strict=True))
    assert split_grid(video(), 0) == []


def test_distances_count_in_distances_of_real_clips() -> None:
    real = np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [40.0, 40.0]])
    distances, typical = relative_distances(np.array([[0.0, 1.0], [40.0, 41.0]]), real)
    assert typical == 2.0
    assert distances.argmin(axis=1).tolist() == [0, 3]
    assert distances.min(axis=1).tolist() == [1.0, 1.0]


def test_a_log_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"note": 1}\n{"step": 2, "lo')
    assert [entry["step"] for entry in read_log(tmp_path)] == [1]


def test_a_folder_of_samples_is_read_with_its_captions(tmp_path: Path) -> None:
    write_npz(tmp_path / "seed_000007.npz", video(), 12.0, {"seed": 7, "class": "a <star>"})
    subject = read_subject(tmp_path)
    assert not subject.is_run
    assert [(c.caption, c.fps, c.label) for c in subject.clips] == [("a <star> · seed 7", 12.0, "a <star>")]
    assert np.array_equal(subject.clips[0].video, video())


def test_subjects_whose_folders_have_one_name_are_told_apart() -> None:
    paths = ("/a/one/samples", "/b/two/samples", "/b/two", "/c/one/samples")
    subjects = titled([Subject(Path(path), is_run=False) for path in paths])
    assert [subject.name for subject in subjects] == ["a/one/samples", "two/samples", "two", "c/one/samples"]
    assert [s.name for s in titled([Subject(Path("/a/x"), is_run=False)] * 2)] == ["x", "x"]


def test_a_folder_of_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_subject(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no videos"):
        read_subject(tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (200, "3 min 20 s"), (3720, "1 h 02 min")])
def test_durations_are_words(seconds: float, text: str) -> None:
    assert clock(seconds) == text
