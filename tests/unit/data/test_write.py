"""Previews and lossless files, and the provenance inside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data import write
from hpdm_core.data.decode import decode_video
from hpdm_core.data.write import (
    read_metadata,
    read_npz,
    spread_frames,
    tile_videos,
    write_contact_sheet,
    write_gif,
    write_mp4,
    write_npz,
    write_png_frames,
    write_png_strip,
)
from hpdm_core.errors import DataError
from tests.support.videos import sample_video

ABOUT = {"seed": 3, "model": "ab12", "settings": {"steps": 32, "prompt": 'a "quoted" = ünïcode; name'}}


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_mp4_is_even_yuv420p_and_close(tmp_path: Path, size: tuple[int, int]) -> None:
    import av

    video = sample_video(frames=10, size=size)
    write_mp4(tmp_path / "a.mp4", video, 12, ABOUT)
    with av.open(str(tmp_path / "a.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p"
        assert context.name == "h264"
        assert not file.streams.audio
    frames, how = decode_video(tmp_path / "a.mp4")
    assert frames.shape == (10, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert how.probe.fps == pytest.approx(12)
    assert np.abs(frames[:, : size[0], : size[1]].astype(int) - video).mean() < 6
    assert read_metadata(tmp_path / "a.mp4") == ABOUT
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("frames", [1, 2, 16, 63, 64])
def test_mp4_has_every_frame_at_every_rate(tmp_path: Path, frames: int) -> None:
    for fps in (3.125, 8, 12, 24000 / 1001, 25, 29.97, 60):
        write_mp4(tmp_path / "a.mp4", sample_video(frames=frames, size=(16, 16)), fps)
        decoded, how = decode_video(tmp_path / "a.mp4")
        assert len(decoded) == frames, fps
        assert how.probe.fps == pytest.approx(fps, rel=1e-4)


def test_gif_plays_every_frame(tmp_path: Path) -> None:
    video = sample_video(frames=6)
    write_gif(tmp_path / "a.gif", video, 10, ABOUT)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 6
        assert image.info["duration"] == 100
        assert image.info["loop"] == 0
        shown = []
        for i in range(6):
            image.seek(i)
            shown.append(np.asarray(image.convert("RGB")))
    assert np.abs(np.stack(shown).astype(int) - video).mean() < 12
    assert read_metadata(tmp_path / "a.gif") == ABOUT


def test_png_frames_are_lossless_and_a_source(tmp_path: Path) -> None:
    video = sample_video(frames=3)
    write_png_frames(tmp_path / "clip", video, ABOUT)
    names = sorted(p.name for p in (tmp_path / "clip").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    assert np.array_equal(np.stack([np.asarray(Image.open(tmp_path / "clip" / n)) for n in names]), video)
    assert read_metadata(tmp_path / "clip" / "00001.png") == ABOUT


def test_png_frames_replace_frames_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".clip.tmp").mkdir()
    (tmp_path / ".clip.tmp" / "00009.png").touch()  # of a run that was killed
    write_png_frames(tmp_path / "clip", sample_video(frames=3))
    write_png_frames(tmp_path / "clip", sample_video(1, frames=2))
    assert sorted(p.name for p in (tmp_path / "clip").iterdir()) == ["00000.png", "00001.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "clip" / "00001.png")), sample_video(1, frames=2)[1])
    assert [p.name for p in tmp_path.iterdir()] == ["clip"]
    (tmp_path / "clip" / "thesis.tex").touch()
    with pytest.raises(DataError, match="in the way"):
        write_png_frames(tmp_path / "clip", sample_video(frames=2))
    assert (tmp_path / "clip" / "thesis.tex").exists()


def test_half_written_frames_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, image: np.ndarray, metadata: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_png", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_png_frames(tmp_path / "clip", sample_video(frames=2))
    assert caught.value.filename == str(tmp_path / "clip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("suffix", [".npz", ".png", ".gif", ".mp4"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    video = sample_video(frames=3)
    path = tmp_path / f"a{suffix}"
    writers = {".npz": lambda: write_npz(path, video, 8, ABOUT), ".png": lambda: write_png_strip(path, video, ABOUT)}
    writers |= {".gif": lambda: write_gif(path, video, 8, ABOUT), ".mp4": lambda: write_mp4(path, video, 8, ABOUT)}
    writers[suffix]()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    if suffix == ".npz":
        with pytest.raises(DataError, match=r"a\.npz is not a video"):
            read_npz(path)
    if share < 0.5 or suffix in (".npz", ".mp4"):  # the tags of images come first
        with pytest.raises(DataError, match=rf"a\{suffix} is damaged"):
            read_metadata(path)
    else:
        assert read_metadata(path) == ABOUT


def test_npz_is_lossless(tmp_path: Path) -> None:
    video = sample_video(frames=3)
    write_npz(tmp_path / "a.npz", video, 8.5, ABOUT)
    again, fps = read_npz(tmp_path / "a.npz")
    assert np.array_equal(again, video)
    assert fps == 8.5
    assert read_metadata(tmp_path / "a.npz") == ABOUT
    (tmp_path / "bad.npz").write_text("no")
    with pytest.raises(DataError, match=r"bad\.npz"):
        read_npz(tmp_path / "bad.npz")


def test_strips_and_sheets(tmp_path: Path) -> None:
    video = sample_video(frames=9)
    write_png_strip(tmp_path / "strip.png", video, ABOUT, columns=4)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (64, 4 * 80, 3)
    assert np.array_equal(strip[:, :80], video[0])
    assert np.array_equal(strip[:, -80:], video[-1])
    write_contact_sheet(tmp_path / "sheet.png", [video, sample_video(1, 1, (32, 32))], ["first [x]", ""], columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (16 + 66 + 34, 3 * 82, 3)
    assert np.array_equal(sheet[16:80, :80], video[0])
    assert sheet[:16].max() > 150  # the title is there


def test_grids_put_videos_side_by_side() -> None:
    videos = np.stack([sample_video(i, 2, (8, 8)) for i in range(3)])
    grid = tile_videos(videos, columns=2, gap=1)
    assert grid.shape == (2, 18, 18, 3)
    assert np.array_equal(grid[:, :8, 9:17], videos[1])
    assert np.array_equal(grid[:, 9:17, :8], videos[2])


def test_spread_frames_includes_both_ends() -> None:
    video = np.arange(10)[:, None]
    assert spread_frames(video, 4)[:, 0].tolist() == [0, 3, 6, 9]
    assert spread_frames(video, 99)[:, 0].tolist() == list(range(10))
    assert spread_frames(video, 1)[:, 0].tolist() == [0]


def test_only_videos_are_written(tmp_path: Path) -> None:
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            write_mp4(tmp_path / "a.mp4", wrong, 10)
    assert not list(tmp_path.iterdir())


def test_foreign_files_have_no_provenance(tmp_path: Path) -> None:
    Image.fromarray(sample_video(frames=1)[0]).save(tmp_path / "a.png")
    assert read_metadata(tmp_path / "a.png") == {}
