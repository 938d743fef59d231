"""Decoding good, odd and damaged files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data import decode
from hpdm_core.data.backends import BACKENDS, available_backends, load_backend, open_container
from hpdm_core.data.decode import check_readable, decode_video, frame_rate, probe
from hpdm_core.errors import ConfigError, CorruptVideo, EnvironmentProblem
from tests.support.videos import (
    NUM_FRAMES,
    claim_frames,
    cut,
    rotate_header,
    sample_video,
    write_audio_only,
    write_lossless,
    write_video,
)

each_backend = pytest.mark.parametrize("backend", available_backends())


def reason_of(path: Path, **options: object) -> str:
    with pytest.raises(CorruptVideo) as caught:
        decode_video(path, **options)  # type: ignore[arg-type]
    assert path.name in str(caught.value)
    return caught.value.reason


@each_backend
def test_lossless_frames_come_back_exactly_and_in_order(tmp_path: Path, backend: str) -> None:
    video = sample_video(size=(63, 79))  # odd on both sides
    frames, how = decode_video(write_lossless(tmp_path / "odd.avi", video), backends=(backend,))
    assert np.array_equal(frames, video)
    assert how.num_frames == how.probe.expected_frames == NUM_FRAMES
    assert how.backend.startswith(f"{backend} ")
    assert how.probe.fps == 25.0
    assert not how.probe.vfr


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("b.mp4", "libx264", "yuv420p"),
        ("ten.mp4", "libx264", "yuv420p10le"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
    ],
)
def test_decoders_agree(tmp_path: Path, name: str, codec: str, pixel_format: str) -> None:
    video = sample_video()
    path = write_video(tmp_path / name, video, codec=codec, pixel_format=pixel_format)
    results = [decode_video(path, backends=(b,))[0] for b in available_backends()]
    for frames in results:
        assert frames.shape == video.shape
        assert np.abs(frames.astype(int) - video).mean() < 8
        assert np.abs(frames.astype(int) - results[0]).mean() < 1


def test_av1_falls_back_to_pyav(tmp_path: Path) -> None:
    import av

    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV cannot encode AV1")
    path = write_video(tmp_path / "a.mp4", sample_video(), codec="libsvtav1")
    frames, how = decode_video(path)
    assert how.backend.startswith("av ")
    assert len(frames) == NUM_FRAMES


@pytest.mark.parametrize("width", [16, 24, 40, 48, 50, 98])
def test_small_widths_come_back_right(tmp_path: Path, width: int) -> None:
    video = sample_video(frames=3, size=(34, width))
    assert np.array_equal(decode_video(write_lossless(tmp_path / "a.avi", video))[0], video)
    film = write_video(tmp_path / "a.mp4", video)
    assert np.array_equal(decode_video(film)[0], decode_video(film, backends=("av",))[0])


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    assert len(decode_video(write_video(tmp_path / "one.mp4", sample_video(frames=1)))[0]) == 1


def test_variable_rate_keeps_stored_frames_and_reports_the_average(tmp_path: Path) -> None:
    times = np.cumsum(np.tile([1, 1, 2, 4], NUM_FRAMES // 4)).tolist()
    path = write_video(tmp_path / "vfr.mp4", sample_video(), times=times)
    frames, how = decode_video(path)
    assert len(frames) == NUM_FRAMES
    assert how.probe.vfr
    assert how.probe.fps == pytest.approx(25 * (NUM_FRAMES - 1) / (times[-1] - times[0]), rel=1e-3)


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return (8 + len(body)).to_bytes(4, "big") + name + body


def add_cover(source: Path, target: Path) -> Path:
    """A copy of an MP4 (its index last) with cover art that comes before the film in the list of streams."""
    image = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(image, "PNG")
    cover = box(b"covr", box(b"data", (14).to_bytes(4, "big"), bytes(4), image.getvalue()))
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    tags = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", cover)))
    data = source.read_bytes()
    moov = data.index(b"moov") - 4
    first_track = data.index(b"trak", moov) - 4
    size = int.from_bytes(data[moov : moov + 4], "big") + len(tags)
    target.write_bytes(data[:moov] + size.to_bytes(4, "big") + data[moov + 4 : first_track] + tags + data[first_track:])
    return target


@each_backend
def test_cover_art_is_not_the_film(tmp_path: Path, backend: str) -> None:
    plain = write_video(tmp_path / "plain.mp4", sample_video(frames=5))
    covered = add_cover(plain, tmp_path / "covered.mp4")
    with open_container(covered) as container:
        assert [s.width for s in container.streams.video] == [20, 80]
    assert np.array_equal(decode_video(covered, backends=(backend,))[0], decode_video(plain, backends=(backend,))[0])


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
@each_backend
def test_frames_stand_upright(tmp_path: Path, backend: str, quarter_turns: int) -> None:
    video = sample_video(frames=4)
    plain = write_video(tmp_path / "plain.mp4", video)
    turned = rotate_header(plain, tmp_path / "turned.mp4", quarter_turns)
    upright = np.rot90(decode_video(plain)[0], -quarter_turns, axes=(1, 2))
    assert np.array_equal(decode_video(turned, backends=(backend,))[0], upright)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a film\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    write_audio_only(tmp_path / "sound.mp4")
    reasons = {path.name: reason_of(path) for path in sorted(tmp_path.iterdir())}
    assert reasons == {
        "empty.mp4": "empty-file",
        "text.mp4": "not-a-video",
        "noise.mp4": "not-a-video",
        "loop.mp4": "symlink-loop",
        "sound.mp4": "no-video-stream",
    }
    assert reason_of(tmp_path / "absent.mp4") == "missing"


def test_unreadable_files_are_told_from_broken_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorruptVideo) as caught:
        check_readable(tmp_path / "private.mp4")
    assert caught.value.reason == "permission"


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.avi", {}), ("a.mkv", {}), ("a.mp4", {"movflags": "faststart"})],
)
def test_a_file_that_lost_its_end_is_truncated(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 64, 80, 3), dtype=np.uint8)
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    whole = write_video(tmp_path / name, noisy, codec=codec, container=options)
    half = cut(whole, tmp_path / f"half-{name}", 0, 0.5)
    assert reason_of(half) == "truncated"
    for backend in available_backends():
        assert reason_of(half, backends=(backend,)) in ("truncated", "decode-error")


def test_a_file_that_lost_its_beginning_is_refused(tmp_path: Path) -> None:
    for name, codec in (("a.avi", "ffv1"), ("b.mp4", "libx264"), ("c.mkv", "libx264")):
        pixel_format = "bgr0" if codec == "ffv1" else "yuv420p"
        whole = write_video(tmp_path / name, sample_video(), codec=codec, pixel_format=pixel_format)
        back = cut(whole, tmp_path / f"back-{name}", 0.5, 1)
        assert reason_of(back) in ("not-a-video", "no-frames", "decode-error", "no-video-stream")


def test_wrong_reported_length(tmp_path: Path) -> None:
    whole = write_lossless(tmp_path / "a.avi", sample_video())
    assert reason_of(claim_frames(whole, tmp_path / "more.avi", 400)) == "truncated"
    frames, how = decode_video(claim_frames(whole, tmp_path / "fewer.avi", 10))
    assert len(frames) == NUM_FRAMES
    assert how.probe.expected_frames == 10
    nearly = claim_frames(whole, tmp_path / "nearly.avi", NUM_FRAMES + 2)
    assert len(decode_video(nearly)[0]) == NUM_FRAMES


def test_max_frames_stops_early_and_is_not_called_truncated(tmp_path: Path) -> None:
    video = sample_video()
    path = write_lossless(tmp_path / "a.avi", video)
    for limit in (1, 16, 17, 40, 99):
        frames, how = decode_video(path, max_frames=limit)
        assert np.array_equal(frames, video[:limit])
        assert how.num_frames == min(limit, NUM_FRAMES)


def test_names_that_ffmpeg_would_take_for_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.avi", "ünïcödé 名前.avi", "with space [x].avi", "100%d.avi"):
        write_lossless(tmp_path / "plain.avi", sample_video(frames=3)).rename(name)
        assert len(decode_video(Path(name))[0]) == 3


def test_the_second_decoder_starts_from_the_first_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = sample_video()
    path = write_lossless(tmp_path / "a.avi", video)

    def dies_half_way(path: Path, chunk: int):
        yield video[:16]
        raise decode.BackendFailed("decode-error", "half way")

    monkeypatch.setattr(decode, "load_backend", lambda name: dies_half_way if name == "decord" else load_backend(name))
    frames, how = decode_video(path, backends=BACKENDS)
    assert np.array_equal(frames, video)
    assert how.backend.startswith("av ")


def test_frame_rate_of_packet_times() -> None:
    assert frame_rate([0.0, 0.04], 25.0) == (25.0, False)
    ticks = [round(i / 29.97, 3) for i in range(100)]  # a container that counts milliseconds
    assert frame_rate(ticks, 29.97) == (29.97, False)
    gappy = [0.1 * i + (0.3 if i > 20 else 0) for i in range(60)]
    assert frame_rate(gappy, 10.0) == (10.0, False)  # one pause is not a variable rate
    uneven = np.cumsum([0.1, 0.3] * 30).tolist()
    rate, varies = frame_rate(uneven, 10.0)
    assert varies
    assert rate == pytest.approx(59 / (uneven[-1] - uneven[0]))
    assert frame_rate([0.0] * 10, None) == (None, False)


def test_probe_expects_what_the_header_says(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        assert probe(write_video(tmp_path / name, sample_video())).expected_frames == NUM_FRAMES


def test_unknown_decoders_are_named() -> None:
    with pytest.raises(ConfigError, match="opencv"):
        available_backends(("opencv",))
    with pytest.raises(EnvironmentProblem, match=r"no_such_package\.module"):
        available_backends(("no_such_package.module:function",))
    assert load_backend("tests.support.videos:hanging_backend").__name__ == "hanging_backend"
