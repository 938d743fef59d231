"""Sources that are tables: CSV (or TSV) and JSON-lines files that name videos and describe them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpdm_core.data.sources.base import Scan, SourceClip, SourceOptions, class_names, split_by_group
from hpdm_core.data.sources.walk import IMAGE_SUFFIXES, natural_order
from hpdm_core.errors import ConfigError, DataError

WEBVID_ID = "videoid"
PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "file_name", WEBVID_ID)
CAPTION_COLUMNS = ("caption", "captions", "text", "name", "prompt", "description", "sentence")
LABEL_COLUMNS = ("label", "class", "cls", "category")

Row = Mapping[str, Any]


def scan_table(options: SourceOptions) -> Scan:
    """Rows of a table as clips; paths are relative to the table. Rows that repeat a path add captions to it.

    In WebVid's own tables (a column videoid, no path) a clip is page_dir/videoid.mp4, as its downloader lays them.
    """
    table = options.folder()
    kind = options.kind if options.kind != "auto" else _kind_of(table)
    rows = _read(table, kind)
    if not rows:
        raise DataError(f"{table} has no rows", hint="a table needs a header line and one row per clip")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path_column = _column(options.path_column, PATH_COLUMNS, columns, table, "path")
    if path_column is None:
        raise ConfigError(
            f"{table}: no column for the video's path among {', '.join(columns)}",
            hint="name it with --path-column",
        )
    caption_column = _column(options.caption_column, CAPTION_COLUMNS, columns, table, "caption")
    label_column = _column(options.label_column, LABEL_COLUMNS, columns, table, "label")
    in_webvid = options.path_column is None and path_column.lower() == WEBVID_ID
    clips: dict[str, SourceClip] = {}
    for number, row in enumerate(rows, start=1):
        name = str(row.get(path_column) or "").strip()
        if not name:
            raise DataError(f"{table}, row {number}: empty {path_column}")
        name = _webvid_path(name, row) if in_webvid else name
        clip = _clip(row, table, name, caption_column, label_column, options.fps)
        clips[clip.id] = _merge(clips[clip.id], clip, table) if clip.id in clips else clip
    ordered = tuple(clips[name] for name in sorted(clips))
    notes = (f"columns: path={path_column}, caption={caption_column}, label={label_column}",)
    if len(ordered) < len(rows):
        notes += (f"{len(rows)} rows name {len(ordered)} clips; repeated rows add captions",)
    scan = Scan(kind, ordered, class_names([c.label for c in ordered]), (), notes)
    return split_by_group(scan, options.split, options.test_fraction)


def _kind_of(table: Path) -> str:
    return "jsonl" if table.suffix.lower() in (".jsonl", ".ndjson") else "csv"


def _read(table: Path, kind: str) -> list[Row]:
    """All rows; DataError for a file that is no such table."""
    try:
        return list(_read_jsonl(table) if kind == "jsonl" else _read_csv(table))
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not UTF-8: {error.reason}", hint="save the table as UTF-8 text") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{table} cannot be read: {error}", hint=f"check that it is a {kind} file") from error


def _read_csv(table: Path) -> Iterator[Row]:
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter=delimiter, strict=True)
        for row in rows:
            if None in row:  # where DictReader puts what has no header
                raise DataError(
                    f"{table}, line {rows.line_num}: more cells than the header has columns",
                    hint=f"put cells that contain {'a tab' if delimiter != ',' else 'a comma'} in double quotes",
                )
            yield row


def _read_jsonl(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                hint = "every line is one JSON object; a CSV table needs --source csv"
                raise DataError(f"{table}, line {number}: not JSON: {error.msg}", hint=hint) from error
            if not isinstance(row, dict):
                raise DataError(f"{table}, line {number}: expected a JSON object")
            yield row


def _column(asked: str | None, usual: tuple[str, ...], columns: Sequence[str], table: Path, what: str) -> str | None:
    """The column to read: the one asked for, which must exist, or the first usual name that does."""
    if asked is not None:
        if asked not in columns:
            raise ConfigError(
                f"{table} has no column {asked!r} (--{what}-column)", hint=f"its columns: {', '.join(columns)}"
            )
        return asked
    lowered = {name.lower(): name for name in columns}
    return next((lowered[name] for name in usual if name in lowered), None)


def _clip(
    row: Row,
    table: Path,
    name: str,
    caption_column: str | None,
    label_column: str | None,
    fps: float | None,
) -> SourceClip:
    path = table.parent / name
    images = _images(path)
    raw_label = row.get(label_column) if label_column else None
    label = None if raw_label is None or str(raw_label).strip() == "" else str(raw_label).strip()
    return SourceClip(
        id=Path(name).as_posix(),
        paths=images or (path,),
        label=label,
        captions=_captions(row.get(caption_column) if caption_column else None),
        group=Path(name).as_posix(),
        is_images=bool(images),
        fps=fps if images else None,
    )


def _webvid_path(video_id: str, row: Row) -> str:
    """Where WebVid's downloader puts a video: page_dir/videoid.mp4."""
    name = video_id if Path(video_id).suffix else f"{video_id}.mp4"
    folder = str(row.get("page_dir") or "").strip()
    return f"{folder}/{name}" if folder else name


def _images(path: Path) -> tuple[Path, ...]:
    """The images of a clip that is a folder of frames or an image; empty for a video, or what cannot be listed."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return (path,)
    try:
        return tuple(natural_order(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES))
    except (OSError, ValueError):  # a file, or nothing that opens: the decoder says what is wrong with it
        return ()


def _captions(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(v).strip() for v in values if v is not None and str(v).strip())


def _merge(first: SourceClip, second: SourceClip, table: Path) -> SourceClip:
    if first.label != second.label:
        raise DataError(f"{table}: {first.id} is labelled both {first.label!r} and {second.label!r}")
    captions = dict.fromkeys((*first.captions, *second.captions))
    return replace(first, captions=tuple(captions))
