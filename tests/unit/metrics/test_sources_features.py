"""Sources of clips and what is taken from them: order, starts, strides, sizes, and every way to be unusable."""

import ast
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from hpdm_core.errors import CorruptVideo, DataError
from hpdm_core.metrics import sources
from hpdm_core.metrics.array_files import array_shapes, load_array
from hpdm_core.metrics.features import (
    Job,
    Selection,
    count_real,
    extract,
    fake_clips,
    frame_rule,
    real_clips,
    view_of,
)
from hpdm_core.metrics.protocol import Protocol
from hpdm_core.metrics.sources import GeneratedSource, open_source
from tests.support.toy_detector import ToyDetector
from tests.support.videos import hanging_decode, sample_video, write_video


def video(index, frames=6, size=16):
    """Frame t of video `index` is the constant 20 * index + t."""
    values = 20 * index + np.arange(frames, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (frames, size, size, 3)).copy()


def protocol(**sections):
    raw = {"clip": {"frames": 4}, "real": {"count": 3, "start": "first"}, "fake": {"count": 3}}
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return Protocol.model_validate({"name": "test", **raw}, strict=False)


@pytest.fixture
def arrays(tmp_path):
    np.savez(tmp_path / "videos.npz", np.stack([video(i) for i in range(5)]))
    return open_source(tmp_path / "videos.npz")


def first_values(clips):
    return [int(clip[0, 0, 0, 0]) for clip in clips]


def test_sorted_first_random_and_all(arrays):
    assert first_values(real_clips(arrays, protocol(), Selection())) == [0, 20, 40]
    everything = protocol(real={"select": "all", "count": None})
    assert first_values(real_clips(arrays, everything, Selection())) == [0, 20, 40, 60, 80]
    chosen = [
        first_values(real_clips(arrays, protocol(real={"select": "random", "seed": s}), Selection()))
        for s in (0, 0, 1, 2)
    ]
    assert chosen[0] == chosen[1]
    assert len({tuple(c) for c in chosen}) > 1
    assert all(len(set(c)) == 3 for c in chosen)


def test_random_starts_depend_on_seed_and_video_only():
    choose = frame_rule(4, 1, "random", 0)
    starts = [choose(i, 50).start for i in range(200)]
    assert min(starts) >= 0
    assert max(starts) == 46
    assert len(set(starts)) > 20
    assert starts == [frame_rule(4, 1, "random", 0)(i, 50).start for i in range(200)]
    assert starts != [frame_rule(4, 1, "random", 1)(i, 50).start for i in range(200)]


def test_stride_and_center():
    assert list(frame_rule(4, 3, "first", 0)(0, 10)) == [0, 3, 6, 9]
    assert frame_rule(4, 3, "first", 0)(0, 9) is None
    assert list(frame_rule(4, 1, "center", 0)(0, 10)) == [3, 4, 5, 6]


def test_workers_do_not_change_the_order(arrays):
    for workers in (0, 1, 3):
        assert first_values(real_clips(arrays, protocol(), Selection(), workers)) == [0, 20, 40]


def test_short_real_videos_are_left_out_and_counted(tmp_path):
    for i, frames in enumerate((6, 2, 6, 6, 3)):
        np.save(tmp_path / f"v{i}.npy", video(i, frames))
    seen = Selection()
    assert first_values(real_clips(open_source(tmp_path), protocol(), seen)) == [0, 40, 60]
    assert seen.too_short == 1
    with pytest.raises(DataError, match=r"takes 4 real clips; there are 3 \(2 videos are shorter than 4 frames\)"):
        list(real_clips(open_source(tmp_path), protocol(real={"count": 4}), Selection()))
    with pytest.raises(DataError, match="none of the 5 real videos has the 10 frames"):
        list(real_clips(open_source(tmp_path), protocol(clip={"frames": 10}), Selection()))


def test_short_few_and_mixed_generated_videos_are_errors(tmp_path):
    for i, frames in enumerate((6, 6, 3)):
        np.save(tmp_path / f"v{i}.npy", video(i, frames))
    with pytest.raises(DataError, match=r"v2\.npy has 3 frames; protocol test needs 4"):
        list(fake_clips(open_source(tmp_path), protocol(), Selection()))
    with pytest.raises(DataError, match="takes 9 generated videos; there are 3") as error:
        list(fake_clips(open_source(tmp_path), protocol(fake={"count": 9}), Selection()))
    assert "--n 3" in error.value.hint
    np.save(tmp_path / "v2.npy", video(2, size=24))
    with pytest.raises(DataError, match=r"mixed sizes: v2\.npy is 24x24, v0\.npy is 16x16"):
        list(fake_clips(open_source(tmp_path), protocol(), Selection()))


def test_clips_are_brought_to_the_protocols_size(arrays):
    seen = Selection()
    clips = list(real_clips(arrays, protocol(clip={"size": [8, 8]}), seen))
    assert clips[0].shape == (4, 8, 8, 3)
    assert (seen.source_size, seen.size) == ((16, 16), (8, 8))


def test_frame_folders_in_natural_order(tmp_path):
    for i in range(3):
        (tmp_path / f"clip{i}").mkdir()
        for t, frame in enumerate(video(i, 12)):
            Image.fromarray(frame).save(tmp_path / f"clip{i}" / f"frame_{t}.png")
    source = open_source(tmp_path)
    assert (source.kind, source.lossy, len(source)) == ("frames", False, 3)
    clips = list(fake_clips(source, protocol(clip={"frames": 12}), Selection()))
    assert clips[1][:, 0, 0, 0].tolist() == list(range(20, 32))


def test_frames_are_preferred_to_as_many_lossy_videos(tmp_path):
    for i in range(2):
        (tmp_path / f"clip{i}").mkdir()
        for t, frame in enumerate(video(i)):
            Image.fromarray(frame).save(tmp_path / f"clip{i}" / f"{t}.png")
        (tmp_path / f"clip{i}.mp4").write_bytes(b"preview")
    assert (open_source(tmp_path).kind, open_source(tmp_path).lossy) == ("frames", False)
    for path in list(tmp_path.glob("*/*.png")):
        path.rename(path.with_suffix(".jpg"))
    for path in list(tmp_path.glob("*.mp4")):
        path.rename(path.with_suffix(".avi"))
    assert (open_source(tmp_path).kind, open_source(tmp_path).lossy) == ("videos", False)


def test_video_files_are_decoded(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        for frame in video(3, 6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    source = open_source(tmp_path)
    assert (source.kind, source.lossy) == ("videos", False)
    clip = next(iter(fake_clips(source, protocol(fake={"count": 1, "stride": 1}), Selection())))
    assert clip[:, 0, 0, 0].tolist() == [60, 61, 62, 63]


def test_lossless_copies_are_preferred(tmp_path):
    np.savez(tmp_path / "000.npz", video=video(1), seed=np.int64(0))
    (tmp_path / "000.mp4").write_bytes(b"preview")
    assert (open_source(tmp_path).kind, len(open_source(tmp_path))) == ("arrays", 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 8, 8, 3), np.float32), "range is not known"),
        (np.zeros((2, 3, 4, 8, 8), np.uint8), "channels last|has shape"),
        (np.zeros((4, 4), np.uint8), "has shape"),
    ],
)
def test_arrays_of_another_sort_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "x.npy")


def test_unusable_paths(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no videos"):
        open_source(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="not a readable NumPy file"):
        open_source(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", labels=np.arange(3))
    with pytest.raises(DataError, match="holds no video"):
        open_source(tmp_path / "x.npz")


def test_fingerprint_follows_the_content(tmp_path):
    np.save(tmp_path / "a.npy", video(1))
    before = open_source(tmp_path).fingerprint()
    assert open_source(tmp_path).fingerprint() == before
    np.save(tmp_path / "a.npy", video(2))
    assert open_source(tmp_path).fingerprint() != before


def test_a_folder_with_other_frames_of_the_same_size_is_another_to_the_cache(tmp_path):
    def write(root, value):
        (root / "clip").mkdir(parents=True, exist_ok=True)
        for t in range(2):
            Image.new("RGB", (4, 4), (value, 0, 0)).save(root / "clip" / f"{t}.bmp")
        return open_source(root)

    first = write(tmp_path / "a", 1)
    fingerprint, identity = first.fingerprint(), first.identity()
    assert open_source(tmp_path / "a").identity() == identity
    again = write(tmp_path / "a", 2)
    assert again.fingerprint() == fingerprint
    assert again.identity() != identity
    elsewhere = write(tmp_path / "b", 1)
    assert elsewhere.fingerprint() == fingerprint
    assert elsewhere.identity() not in (identity, again.identity())


def test_lengths_are_known_without_decoding(tmp_path, arrays):
    assert [arrays.length(i) for i in range(5)] == [6] * 5
    np.save(tmp_path / "one.npy", video(1, 3))
    assert open_source(tmp_path / "one.npy").length(0) == 3
    with pytest.raises(DataError, match="takes 6 real clips; there are 5"):
        count_real(arrays, protocol(real={"count": 6}))
    with pytest.raises(DataError, match="none of the 5 real videos has the 7 frames"):
        count_real(arrays, protocol(clip={"frames": 7}))
    assert count_real(arrays, protocol(real={"count": 5})) == 5


def test_generated_videos_are_taken_one_at_a_time():
    alive, most = 0, 0

    def make(seeds):
        nonlocal alive, most
        for seed in seeds:
            alive += 1
            most = max(most, alive)
            yield seed, video(seed)
            alive -= 1

    source = GeneratedSource(make, 3, "identity")
    assert first_values(fake_clips(source, protocol(), Selection())) == [0, 20, 40]
    assert most == 1
    short = GeneratedSource(lambda seeds: [(0, video(0))], 3, "identity")
    with pytest.raises(DataError, match="stopped after 1 of 3"):
        list(fake_clips(short, protocol(), Selection()))


def test_views():
    clip = video(0, 8)
    assert set(view_of(clip, "static", 0)[:, 0, 0, 0]) == {4}
    shuffled = view_of(clip, "shuffled", 5)[:, 0, 0, 0]
    assert sorted(shuffled) == list(range(8))
    assert shuffled.tolist() != list(range(8))
    assert shuffled.tolist() == view_of(clip, "shuffled", 5)[:, 0, 0, 0].tolist()
    assert view_of(clip, "video", 0) is clip


def test_features_do_not_depend_on_the_batch():
    clips = [np.random.default_rng(i).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8) for i in range(7)]
    jobs = {view: Job(ToyDetector(), view) for view in ("video", "static", "shuffled")}
    counted = []
    one = extract(clips, jobs, batch_size=1)
    four = extract(iter(clips), jobs, batch_size=4, advance=counted.append)
    assert counted == [4, 3]
    for view in jobs:
        np.testing.assert_allclose(one[view].features, four[view].features, rtol=1e-6)
        assert four[view].features.shape == (7, 6)
        np.testing.assert_allclose(four[view].statistics.mean(), four[view].features.mean(axis=0), rtol=1e-6)
    direct = ToyDetector().features(torch.from_numpy(np.stack(clips))).numpy()
    np.testing.assert_allclose(four["video"].features, direct, rtol=1e-6)


def test_without_read_ahead_clips_are_made_on_the_thread_of_the_network():
    makers = set()

    def clips():
        for i in range(3):
            makers.add(threading.get_ident())
            yield video(i)

    extract(clips(), {"video": Job(ToyDetector())}, batch_size=1, read_ahead=False)
    assert makers == {threading.get_ident()}
    extract(clips(), {"video": Job(ToyDetector())}, batch_size=1)
    assert len(makers) > 1


def test_an_error_while_reading_reaches_the_caller():
    def broken():
        yield video(0)
        raise DataError("the second video is broken")

    with pytest.raises(DataError, match="second video"):
        extract(broken(), {"video": Job(ToyDetector())}, batch_size=1)


@pytest.mark.parametrize("name", ["hang.avi", "crash.avi"])
def test_a_file_that_hangs_or_crashes_its_decoder_is_named(tmp_path, monkeypatch, name):
    write_video(tmp_path / name, sample_video())
    write_video(tmp_path / "sound.avi", sample_video())
    monkeypatch.setattr(sources, "decode_video", hanging_decode)
    monkeypatch.setattr(sources, "DECODE_DEADLINE", 3.0)
    folder = open_source(tmp_path)
    with pytest.raises(CorruptVideo, match=name):
        folder.clip(0, lambda index, length: range(length), None)
    assert folder.clip(1, lambda index, length: range(length), None).frames is not None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_an_archive_is_the_one_that_was_saved(tmp_path, save, order):
    path, clip = tmp_path / "clips.npz", np.asarray(np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3)), np.uint8)
    save(path, one=np.asarray(clip, order=order), two=clip[:2], none=clip[:0])
    assert array_shapes(path) == [("one", (5, 4, 6, 3)), ("two", (2, 4, 6, 3)), ("none", (0, 4, 6, 3))]
    for key, expected in (("one", clip), ("two", clip[:2]), ("none", clip[:0])):
        assert np.array_equal(load_array(path, key), expected)
    with pytest.raises(DataError, match="not a readable NumPy file"):
        load_array(path, "three")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_headers_are_parsed_by_one_thread_at_a_time(tmp_path, monkeypatch, suffix):
    """NumPy parses them with `ast`, which some Pythons cannot do in two threads at once."""
    inside, most, real = [], [], ast.literal_eval

    def slow(text):
        inside.append(text)
        most.append(len(inside))
        threading.Event().wait(0.01)
        inside.pop()
        return real(text)

    for index in range(8):
        (np.save if suffix == "npy" else np.savez)(tmp_path / f"{index}.{suffix}", video(index))
    monkeypatch.setattr(ast, "literal_eval", slow)
    found = list(open_source(tmp_path).clips(range(8), lambda _, length: range(length), None, workers=8))
    assert [int(clip.frames[0, 0, 0, 0]) for clip in found] == [20 * index for index in range(8)]
    assert max(most) == 1
