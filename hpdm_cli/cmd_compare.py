"""`hpdm compare`: evaluation results side by side, if they were measured alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hpdm_cli import console
from hpdm_core.errors import ConfigError


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="A.json B.json ...", help="Results of eval-fvd --json.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare although the protocols differ.")] = False,
) -> None:
    """Print a table of results. Refuses results of different protocols, data or counts, naming each difference."""
    from hpdm_core.metrics.results import incomparable, metric_names, read_result

    results = [read_result(path) for path in files]
    reasons = incomparable(results)
    if reasons and not anyway:
        lines = "".join(f"\n  {reason}" for reason in reasons)
        raise ConfigError(
            f"these results were not measured alike:{lines}",
            hint="measure them alike, or add --anyway to see them still",
        )
    for reason in reasons:
        console.print_note(f"warning: {reason}")
    names = metric_names(results)
    stems = [item.path.stem for item in results]
    titles = stems if len(set(stems)) == len(stems) else [str(item.path) for item in results]
    rows = [[title, *(_cell(item.result["metrics"].get(n)) for n in names)]
            for title, item in zip(titles, results, strict=True)]  # fmt: skip
    rows = [[*row, item.result["protocol_hash"]] for row, item in zip(rows, results, strict=True)]
    _print(["result", *(_heading(results, name) for name in names), "protocol"], rows)


def _heading(results: list[Any], name: str) -> str:
    """The metric's label where all results agree on it, else its name."""
    labels = {item.result["metrics"][name]["label"] for item in results if name in item.result["metrics"]}
    return labels.pop() if len(labels) == 1 else name


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    interval = " ({:.4g} to {:.4g})".format(*entry["ci95"]) if entry["ci95"] else ""
    return f"{entry['value']:.5g}{interval}"


def _print(headings: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal, tab-separated columns elsewhere."""
    if not sys.stdout.isatty():
        for row in (headings, *rows):
            console.print_result("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)
