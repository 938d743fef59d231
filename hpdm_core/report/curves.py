"""The curves of a run: loss, loss by part, speed, learning rate, gradient norm, against videos seen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from hpdm_core.report.chart import Series, line_chart
from hpdm_core.report.markup import figure, grid, paragraph

Log = Sequence[dict[str, Any]]

X_LABEL = "videos seen"
CHARTS = (
    ("loss", "Loss, total", True),
    ("loss_levels", "Loss by level", True),
    ("lr", "Learning rate", False),
    ("grad_norm", "Gradient norm, before clipping", True),
    ("videos_per_s", "Videos per second", False),
)
"""Log key, title, logarithmic axis."""


def curve_figures(log: Log, keys: Sequence[str] = tuple(key for key, _, _ in CHARTS)) -> str:
    """Charts of a run's log, one group per phase of its training."""
    groups = [(name, list(entries)) for name, entries in groupby(log, key=lambda entry: entry.get("phase", ""))]
    parts = []
    for name, entries in groups:
        charts = [_chart(entries, key, title, log_axis) for key, title, log_axis in CHARTS if key in keys]
        if len(groups) > 1:
            parts.append(f"<h3>Phase {escape(str(name))}</h3>")
        parts.append(grid([chart for chart in charts if chart], "charts"))
    return "".join(parts) or paragraph("The log holds no step yet.", "empty")


def compared_losses(runs: Sequence[tuple[str, Log]]) -> str:
    """The total loss of several runs in one chart; only the parts of training that share a phase's name."""
    phases = list(dict.fromkeys(entry.get("phase", "") for _, log in runs for entry in log))
    charts = []
    for phase in phases:
        series = [_series(name, [e for e in log if e.get("phase", "") == phase], "loss") for name, log in runs]
        chart = line_chart([s for s in series if s.xs], title="Loss, total", x_label=X_LABEL, log=True)
        if chart:
            charts.append(figure(chart, f"Loss, total · {phase}" if phase else "Loss, total", "chart"))
    return grid(charts, "charts")


def _chart(entries: Log, key: str, title: str, log_axis: bool) -> str:
    if key == "loss_levels":
        names = list(dict.fromkeys(name for entry in entries for name in entry.get(key) or {}))
        series = [_part(entries, name) for name in names]
        if len(series) < 2:
            return ""
    else:
        series = [_series("", entries, key)]
    chart = line_chart(series, title=title, x_label=X_LABEL, log=log_axis, smooth=key != "lr")
    return figure(chart, title, "chart") if chart else ""


def _series(name: str, entries: Log, key: str) -> Series:
    kept = [entry for entry in entries if isinstance(entry.get(key), (int, float))]
    return Series(name, [entry["videos_seen"] for entry in kept], [entry[key] for entry in kept])


def _part(entries: Log, name: str) -> Series:
    kept = [entry for entry in entries if isinstance((entry.get("loss_levels") or {}).get(name), (int, float))]
    shown = f"level {name.removeprefix('level')}" if name.removeprefix("level").isdigit() else name
    return Series(shown, [e["videos_seen"] for e in kept], [e["loss_levels"][name] for e in kept])
