"""`write_report`: one page about runs and folders of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hpdm_core.data.shard import write_text
from hpdm_core.data.store import VideoStore
from hpdm_core.report import sections
from hpdm_core.report.curves import compared_losses
from hpdm_core.report.markup import Section, page
from hpdm_core.report.neighbours import nearest_real
from hpdm_core.report.reading import Subject, read_subject, real_store, titled

MAX_NEAREST_SHOWN = 8


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    store: Path | None = None,
    nearest: int = 64,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write the report on `paths`, each a run directory or a folder of samples, to the HTML file `out`.

    store: real clips to show beside the samples; None takes the one that a run's config finds. nearest: how many real
    clips of a `store` given are searched for each sample's nearest; 0 leaves that part out. `advance` is told how many
    clips went through the feature network. Raises DataError for a path that holds neither.
    """
    subjects = titled([read_subject(path) for path in paths])
    real = real_store(store, subjects)
    found: list[Section] = []
    runs = [(subject.name, subject.log) for subject in subjects if subject.log]
    if len(runs) > 1 and (chart := compared_losses(runs)):
        found.append(Section("compared", "Compared", chart, "The total loss of each run."))
    for number, subject in enumerate(subjects):
        count = nearest if store is not None else 0
        own = _subject_sections(subject, real, count, device, advance)
        found += own if len(subjects) == 1 else [_named(section, subject, number) for section in own]
    title = " · ".join(subject.name for subject in subjects)
    lead = f"A report on {', '.join(str(path) for path in paths)}."
    write_text(out, page(title, lead, found))


def clips_to_embed(paths: Sequence[Path], store: Path | None, nearest: int) -> int:
    """How many clips `write_report` will send through the feature network, at most."""
    if store is None or not nearest:
        return 0
    real = min(nearest, len(VideoStore.open(store)))
    return sum(real + MAX_NEAREST_SHOWN for _ in paths)


def _subject_sections(
    subject: Subject, real: VideoStore | None, nearest: int, device: str, advance: Callable[[int], None] | None
) -> list[Section]:
    found = [sections.overview(subject, real)]
    if subject.is_run:
        found.append(sections.curves(subject))
    found += [sections.samples(subject, real), sections.metrics(subject.results), sections.seams(subject, real)]
    if (joined := sections.joins(subject, real)) is not None:
        found.append(joined)
    if nearest and real is not None and subject.clips:
        shown = subject.clips[:MAX_NEAREST_SHOWN]
        matches = nearest_real(shown, real, limit=nearest, device=device, advance=advance)
        found.append(sections.neighbours(shown, matches, min(nearest, len(real))))
    return found


def _named(section: Section, subject: Subject, number: int) -> Section:
    """The section of one of several subjects."""
    return replace(section, anchor=f"{section.anchor}-{number + 1}", title=f"{subject.name}: {section.title.lower()}")
