"""`hpdm inspect`: what a store, a weights file or run, or a sample written by hpdm holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hpdm_cli import console
from hpdm_cli.options import Json
from hpdm_cli.results import require_json_file, to_stdout, write_json_text
from hpdm_core.data.disk import require_writable
from hpdm_core.data.store import STORE_FILE, VideoStore
from hpdm_core.data.survey import Survey, survey_store, verify_store
from hpdm_core.data.write import read_metadata, write_contact_sheet
from hpdm_core.errors import DataError
from hpdm_core.rng import numpy_stream

SAMPLE_SUFFIXES = {".mp4", ".gif", ".png", ".npz"}
MAX_NAMED = 5
BAR_WIDTH = 40


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A store, a run or weights file, or a sample.")],
    *,
    contact_sheet: Annotated[
        Path | None, typer.Option("--contact-sheet", metavar="FILE", help="Write a PNG of random clips.")
    ] = None,
    num: Annotated[int, typer.Option("--num", min=1, help="Clips on the contact sheet.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Which random clips.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and check it.")] = False,
    json_file: Json = None,
) -> None:
    """Show what a prepared store holds; also the header of weights, and the provenance of a sample.

    A store: counts, lengths, frame rates, classes, duplicates, black and static clips.
    """
    require_json_file(json_file)
    if contact_sheet is not None:
        require_writable(contact_sheet, "--contact-sheet")
    if path.suffix.lower() in SAMPLE_SUFFIXES and path.is_file():
        _finish(read_metadata(path), json_file, "no provenance: not written by hpdm")
    elif (path / STORE_FILE).is_file() or not _is_run(path):
        _inspect_store(VideoStore.open(path), contact_sheet, num, seed, verify, json_file)
    else:
        from hpdm_core.families.weights import find_weights, read_header

        file = find_weights(path)
        _finish({"file": str(file), **asdict(read_header(file))}, json_file, "")


def _is_run(path: Path) -> bool:
    from hpdm_core.families.weights import CHECKPOINTS, WEIGHTS_FILE

    return path.is_file() or (path / CHECKPOINTS).is_dir() or (path / WEIGHTS_FILE).is_file()


def _finish(facts: dict[str, Any], json_file: Path | None, if_empty: str) -> None:
    text = json.dumps(facts, indent=2, sort_keys=True)
    if not to_stdout(json_file):
        console.print_result(text if facts else if_empty)
    if json_file is not None:
        write_json_text(json_file, text)


def _inspect_store(
    store: VideoStore, contact_sheet: Path | None, num: int, seed: int, verify: bool, json_file: Path | None
) -> None:
    with console.progress("inspect", len(store), unit="clips") as shown:
        survey = survey_store(store, shown.advance)
    say = console.print_note if to_stdout(json_file) else console.print_result
    if not to_stdout(json_file):
        console.print_result(_store_text(store, survey))
    if json_file is not None:
        write_json_text(json_file, json.dumps(_store_facts(store, survey), indent=1))
    if contact_sheet is not None:
        _write_sheet(store, contact_sheet, num, seed)
        console.print_note(f"contact sheet: {contact_sheet}")
    if verify:
        _verify(store)
        say("verified     every stored byte matches its checksum")


def _verify(store: VideoStore) -> None:
    """Raise DataError unless every stored byte matches its checksum."""
    with console.progress("verify", len(store), unit="clips") as shown:
        damaged = verify_store(store, shown.advance)
    if damaged:
        raise DataError(
            f"{store.path} is damaged: {'; '.join(damaged[:MAX_NAMED])} ({len(damaged)} in all)",
            hint="delete the store and run hpdm prepare-data again",
        )


def _write_sheet(store: VideoStore, path: Path, num: int, seed: int) -> None:
    chosen = np.sort(numpy_stream(seed, "inspect/sheet").permutation(len(store))[:num])
    size = next((s for s in store.sizes if max(s) <= 128), store.sizes[-1])
    clips = [store.clips[int(i)] for i in chosen]
    titles = [f"{c.id}   {c.num_frames} frames   {c.captions[0] if c.captions else ''}" for c in clips]
    write_contact_sheet(path, [store.read_frames(c.index, size) for c in clips], titles, {"store": store.fingerprint})


def _store_facts(store: VideoStore, survey: Survey) -> dict[str, Any]:
    facts = asdict(survey)
    facts["lengths"] = [{"from": a, "to": b, "clips": n} for (a, b), n in survey.lengths.items()]
    about = {key: value for key, value in store.about.items() if key != "shards"} | {"command": store.command}
    return {"store": about, "survey": facts}


def _store_text(store: VideoStore, survey: Survey) -> str:
    sizes = ", ".join(f"{h}x{w}" for h, w in store.sizes)
    lines = [
        f"store        {store.path} ({store.codec}; {sizes})",
        f"fingerprint  {store.fingerprint[:16]}",
        f"made by      {store.about.get('made_by')}: {store.command}",
        f"clips        {survey.num_clips}, {survey.num_frames} frames, {survey.num_captioned} with captions",
        f"quarantined  {store.about.get('num_quarantined')}",
        f"fps          {_joined(survey.rates)}",
        f"decoders     {_joined(survey.decoders)}",
        *([f"notes        {_joined(survey.notes)}"] if survey.notes else []),
        f"duplicates   {len(survey.duplicates)} groups{_named([' = '.join(g) for g in survey.duplicates])}",
        f"black        {len(survey.black)}{_named(survey.black)}",
        f"static       {len(survey.static)}{_named(survey.static)}",
        "frames per clip",
        *_bars({f"{a}-{b}" if b > a else str(a): n for (a, b), n in survey.lengths.items()}),
        f"classes ({len(store.classes)})",
        *_bars(survey.classes),
    ]
    return "\n".join(lines)


def _joined(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _named(ids: tuple[str, ...] | list[str]) -> str:
    more = f", … {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return f" ({', '.join(ids[:MAX_NAMED])}{more})" if ids else ""


def _bars(counts: dict[str, int]) -> list[str]:
    most = max(counts.values(), default=1) or 1
    width = max((len(name) for name in counts), default=0)
    return [f"  {name:>{width}}  {n:>6} {'█' * round(BAR_WIDTH * n / most)}" for name, n in counts.items()]
