"""Listing clips: kinds of source, labels, captions, splits, and folders that resist."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpdm_core.data.sources.base import SourceClip, SourceOptions, class_names
from hpdm_core.data.sources.detect import detect_kind, scan_source
from hpdm_core.data.sources.walk import natural_order, words_of
from hpdm_core.errors import ConfigError, DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def scan(path: Path | None, **options: object):
    return scan_source(SourceOptions(path=path, **options))  # type: ignore[arg-type]


def by_id(clips: tuple[SourceClip, ...]) -> dict[str, SourceClip]:
    return {clip.id: clip for clip in clips}


UCF = [f"{c}/v_{c}_g{g:02d}_c{n:02d}.avi" for c in ("ApplyEyeMakeup", "YoYo") for g in (1, 2, 3) for n in (1, 2)]


def test_ucf101_gives_labels_prompts_and_groups(tmp_path: Path) -> None:
    found = scan(touch(tmp_path, *UCF, "readme.txt"))
    assert found.kind == "ucf101"
    assert found.classes == ("ApplyEyeMakeup", "YoYo")
    assert [c.id for c in found.clips] == sorted(UCF)
    first = found.clips[0]
    assert (first.label, first.captions, first.group) == ("ApplyEyeMakeup", ("apply eye makeup",), "ApplyEyeMakeup_g01")
    assert found.notes == ("ignored 1 files of other kinds",)


def test_ucf101_official_lists(tmp_path: Path) -> None:
    root = touch(tmp_path / "UCF-101", *UCF)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in UCF if "_g01" not in name))
    (lists / "testlist01.txt").write_text(
        "".join(f"{name}\n" for name in UCF if "_g01" in name) + "Away/v_Away_g01_c01.avi\n"
    )
    train, test = (scan(root, split=split) for split in ("train", "test"))
    assert {c.id for c in train.clips} == {n for n in UCF if "_g01" not in n}
    assert {c.id for c in test.clips} == {n for n in UCF if "_g01" in n}
    assert train.classes == test.classes == ("ApplyEyeMakeup", "YoYo")
    assert "names 5 clips: 4 found, 1 missing, 8 found files are not in it" in test.notes[-1]
    with pytest.raises(ConfigError, match="trainlist02"):
        scan(root, split="train", split_index=2)
    (lists / "trainlist01.txt").write_bytes("é 1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"trainlist01\.txt cannot be read"):
        scan(root, split="train")
    (lists / "trainlist01.txt").write_text("Away/v_Away_g01_c01.avi 1\n")
    with pytest.raises(DataError, match="none of the 12 clips"):
        scan(root, split="train", lists=lists)


def test_split_by_group_keeps_groups_whole_and_classes_on_both_sides(tmp_path: Path) -> None:
    root = touch(tmp_path, *[f"{c}/v_{c}_g{g:02d}_c{n:02d}.avi" for c in "ABCD" for g in range(10) for n in range(3)])
    train, test = (scan(root, split=split, test_fraction=0.2) for split in ("train", "test"))
    assert {c.group for c in train.clips}.isdisjoint({c.group for c in test.clips})
    assert len(train.clips) + len(test.clips) == 120
    for label in "ABCD":
        assert sum(c.label == label for c in test.clips) == 6
    with pytest.raises(ConfigError, match="--split test"):
        scan(root, split="test")


def test_a_class_of_one_group_stays_in_training(tmp_path: Path) -> None:
    root = touch(tmp_path, "A/v_A_g01_c01.avi", "A/v_A_g01_c02.avi", "B/v_B_g01_c01.avi", "B/v_B_g02_c01.avi")
    test = scan(root, split="test", test_fraction=0.5)
    assert {c.label for c in test.clips} == {"B"}


def test_folders_with_and_without_classes(tmp_path: Path) -> None:
    flat = scan(touch(tmp_path / "flat", "b.mp4", "a.MKV", ".hidden.mp4"))
    assert flat.kind == "folder"
    assert [(c.id, c.label, c.captions) for c in flat.clips] == [("a.MKV", None, ()), ("b.mp4", None, ())]
    assert flat.classes == ()
    nested = scan(touch(tmp_path / "nested", "dog_walk/x/1.mp4", "cat/1.mp4"))
    assert [(c.id, c.label, c.captions) for c in nested.clips] == [
        ("cat/1.mp4", "cat", ("cat",)),
        ("dog_walk/x/1.mp4", "dog_walk", ("dog walk",)),
    ]
    assert len({c.id for c in nested.clips}) == 2  # the same file name twice
    single = scan(tmp_path / "flat" / "b.mp4")
    assert [c.id for c in single.clips] == ["b.mp4"]


def test_frames_are_folders_of_images(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"cat/one/{i}.jpg" for i in (10, 2, 1)), "cat/two/0.png", "cat/still.png", "alone/5.png")
    clips = by_id(scan(root, fps=12.0).clips)
    assert set(clips) == {"cat/one", "cat/two", "cat/still.png", "alone"}
    assert [p.name for p in clips["cat/one"].paths] == ["1.jpg", "2.jpg", "10.jpg"]
    assert clips["cat/one"].label == "cat"
    assert clips["alone"].label is None
    assert all(c.is_images and c.fps == 12.0 for c in clips.values())
    assert [c.id for c in scan(root / "cat" / "one").clips] == ["one"]


def test_sky_timelapse_is_a_clip_per_innermost_folder(tmp_path: Path) -> None:
    """Its layout: SPLIT/VIDEO/VIDEO_n/VIDEO_frames_00000046.jpg, numbers going on from clip to clip."""
    frames = {"a_1": range(8, 12), "a_2": range(12, 14), "b-_1": range(98, 103)}
    names = [
        f"sky_train/{clip[:-2]}/{clip}/{clip[:-2]}_frames_{i:08d}.jpg" for clip, numbers in frames.items()
        for i in reversed(numbers)
    ]  # fmt: skip
    root = touch(tmp_path, *names, "sky_test/c/c_1/c_frames_00000001.jpg")
    train = by_id(scan(root / "sky_train", kind="frames").clips)
    assert {name: len(clip.paths) for name, clip in train.items()} == {"a/a_1": 4, "a/a_2": 2, "b-/b-_1": 5}
    ends = [path.name for path in train["b-/b-_1"].paths]
    assert ends == [f"b-_frames_{i:08d}.jpg" for i in frames["b-_1"]]
    assert {clip.id for clip in scan(root, kind="frames").clips} == {
        "sky_train/a/a_1", "sky_train/a/a_2", "sky_train/b-/b-_1", "sky_test/c/c_1"
    }  # fmt: skip


def test_csv_maps_columns_by_name(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("Caption,video,label\na cat,x/1.mp4,cat\na pet,x/1.mp4,cat\n,2.mp4,dog\n", encoding="utf-8-sig")
    clips = by_id(scan(table).clips)
    assert clips["x/1.mp4"].captions == ("a cat", "a pet")
    assert clips["x/1.mp4"].paths == (tmp_path / "x" / "1.mp4",)
    assert (clips["2.mp4"].label, clips["2.mp4"].captions) == ("dog", ())
    renamed = scan(table, path_column="video", caption_column="label", label_column="label")
    assert by_id(renamed.clips)["2.mp4"].captions == ("dog",)


def test_webvid_tables_name_the_files_that_its_downloader_makes(tmp_path: Path) -> None:
    table = tmp_path / "results_2M_val.csv"
    table.write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        "1066674784,https://x/1.mp4,PT00H00M10S,006001_006050,Merida street\n"
        "29,https://x/2.mp4,PT00H00M10S,,A lake\n"
    )
    clips = by_id(scan(table).clips)
    assert clips["006001_006050/1066674784.mp4"].captions == ("Merida street",)
    assert clips["006001_006050/1066674784.mp4"].paths == (tmp_path / "006001_006050" / "1066674784.mp4",)
    assert clips["29.mp4"].captions == ("A lake",)
    assert list(by_id(scan(table, path_column="videoid").clips)) == ["1066674784", "29"]


def test_the_kind_of_table_that_was_asked_for(tmp_path: Path) -> None:
    table = tmp_path / "list.txt"
    table.write_text('{"path": "1.mp4"}\n{"path": "2.mp4", "caption": "two", "label": "b"}\n')
    found = scan(table, kind="jsonl")
    assert found.kind == "jsonl"
    assert [(c.id, c.captions, c.label) for c in found.clips] == [("1.mp4", (), None), ("2.mp4", ("two",), "b")]
    table = tmp_path / "odd.jsonl"
    table.write_text("path,caption\n1.mp4,one\n")
    assert [c.captions for c in scan(table, kind="csv").clips] == [("one",)]
    with pytest.raises(DataError, match="not JSON"):
        scan(table)


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes("path,caption\n1.mp4,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv is not UTF-8"):
        scan(table)
    (tmp_path / "t.jsonl").write_bytes('{"path": "café.mp4"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.jsonl is not UTF-8"):
        scan(tmp_path / "t.jsonl")
    table.write_text("path,caption\n1.mp4,one\n2.mp4,a dog, barking\n")
    with pytest.raises(DataError, match="line 3: more cells than the header"):
        scan(table)
    table.write_text("path,caption\n1.mp4," + "x" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"t\.csv cannot be read: field larger"):
        scan(table)


def test_csv_complaints(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("clip,text\n1.mp4,a\n")
    with pytest.raises(ConfigError, match="no column for the video's path among clip, text"):
        scan(table)
    with pytest.raises(ConfigError, match="'words'"):
        scan(table, path_column="clip", caption_column="words")
    table.write_text("path,label\n1.mp4,a\n1.mp4,b\n")
    with pytest.raises(DataError, match="both 'a' and 'b'"):
        scan(table)
    table.write_text("path\n")
    with pytest.raises(DataError, match="no rows"):
        scan(table)


def test_jsonl_with_lists_of_captions_and_frame_folders(tmp_path: Path) -> None:
    touch(tmp_path, "clip/1.png", "clip/2.png")
    rows = [{"path": "clip", "captions": ["one", "two"], "label": 10}, {"path": "v.mp4", "label": 9}]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = scan(table)
    clips = by_id(found.clips)
    assert found.classes == ("9", "10")
    assert clips["clip"].captions == ("one", "two")
    assert clips["clip"].is_images
    assert len(clips["clip"].paths) == 2
    table.write_text('{"path": 1\n')
    with pytest.raises(DataError, match="line 1"):
        scan(table)


def test_detection_says_what_it_saw(tmp_path: Path) -> None:
    mixed = touch(tmp_path / "mixed", "a.mp4", "b.jpg", "c.txt")
    with pytest.raises(ConfigError, match="1 videos, 1 images, 1 other files"):
        detect_kind(SourceOptions(path=mixed))
    with pytest.raises(ConfigError, match="does not exist"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no source given"):
        scan(None)
    with pytest.raises(ConfigError, match="cannot tell"):
        scan(touch(tmp_path, "x.xyz") / "x.xyz")
    with pytest.raises(DataError, match="no videos found"):
        scan(touch(tmp_path / "texts", "a.txt"), kind="folder")
    with pytest.raises(ConfigError, match="not a csv table"):
        scan(mixed, kind="csv")


def test_links_that_go_round(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.mp4")
    (root / "a" / "up").symlink_to(root)
    (root / "self.mp4").symlink_to(root / "self.mp4")
    outside = touch(tmp_path / "outside", "2.mp4")
    (root / "linked").symlink_to(outside)
    found = scan(root, kind="folder")
    assert [c.id for c in found.clips] == ["a/1.mp4", "linked/2.mp4", "self.mp4"]
    assert [(p.path, p.reason) for p in found.problems] == [("a/up", "symlink-loop")]


def test_folders_that_may_not_be_listed(tmp_path: Path) -> None:
    root = touch(tmp_path, "open/1.mp4", "closed/2.mp4")
    (root / "closed").chmod(0)
    try:
        if os.access(root / "closed", os.R_OK):
            pytest.skip("this user may read everything")
        found = scan(root)
    finally:
        (root / "closed").chmod(0o700)
    assert [c.id for c in found.clips] == ["open/1.mp4"]
    assert [(p.path, p.reason) for p in found.problems] == [("closed", "permission")]


def test_synthetic_needs_no_files() -> None:
    found = scan(None, kind="synthetic", num_clips=12, num_frames=5, seed=2)
    assert len(found.clips) == 12
    assert len(found.classes) == 10
    assert found.clips[11].synthetic is not None
    assert (found.clips[11].synthetic.index, found.clips[11].synthetic.frames) == (11, 5)


def test_scenes_are_split_by_rule_and_other_styles_are_not() -> None:
    options = {"kind": "synthetic", "num_clips": 30, "num_frames": 8, "frame_step": 8}
    train, test = (scan(None, **options, style="scenes", split=split) for split in ("train", "test"))
    assert len(train.clips) == len(test.clips) == 30
    assert not {clip.id for clip in train.clips} & {clip.id for clip in test.clips}
    assert train.classes == test.classes == ("circle", "square", "triangle", "star", "ring")
    assert "without the held-out pairs" in train.notes[0]
    assert train.clips[0].fps == 1.5
    with pytest.raises(ConfigError, match="style rich are not divided into train and test"):
        scan(None, **options, split="train")
    assert len(scan(None, **options, split="train", test_fraction=0.2).clips) < 30


def test_names_in_words_and_orders() -> None:
    assert words_of("ApplyEyeMakeup") == "apply eye makeup"
    assert words_of("YoYo") == "yo yo"
    assert words_of("HTMLPage_two-three") == "html page two three"
    assert class_names(["10", "9", None, "9"]) == ("9", "10")
    assert class_names(["b", "10", "a"]) == ("10", "a", "b")
    assert [p.name for p in natural_order(map(Path, ("f10", "f9", "e1")))] == ["e1", "f9", "f10"]
