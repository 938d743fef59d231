"""Named and measured sampling settings: `--fast`, and `--budget` from a table of what was measured for this very model.

A table is JSON that `benchmarks/sampling.py` writes. It lies beside the weights (`sampling.json`) or among the presets
(`sampling/<first 16 hex digits of the weights' sha256>.json`). Times are of the machine that made it; a short probe
run there and here tells how this machine compares.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, ValidationError

from hpdm_core.config.presets import presets_root
from hpdm_core.config.schema import Positive, Section
from hpdm_core.errors import ConfigError
from hpdm_core.families.generate import outline, sample
from hpdm_core.families.weights import LoadedModel

TABLE_FILE = "sampling.json"


class Measured(Section):
    """One setting: keys of the sample section, the Fréchet distance reached, seconds of one whole video."""

    options: dict[str, JsonValue]
    frechet: float
    calls: int
    seconds: Positive


class Probe(Section):
    """A short run and the seconds that it took where the table was made."""

    options: dict[str, JsonValue]
    seconds: Positive


class SettingsTable(Section):
    """What was measured for one model. `distance` says which Fréchet distance, `machine` where."""

    model_sha256: str
    machine: str
    distance: str
    probe: Probe
    rows: tuple[Measured, ...]


def fast_options(model: LoadedModel) -> dict[str, Any]:
    """The `sample.fast` setting of the model's config. ConfigError if it has none."""
    if not model.config.sample.fast:
        fewer = ",".join(str(max(1, stage.steps // 4)) for stage in outline(model, frames=None, size=None).stages)
        raise ConfigError(
            "this model's config has no `sample.fast`", hint=f"say it yourself, for example --steps {fewer}"
        )
    return dict(model.config.sample.fast)


def budget_options(
    model: LoadedModel,
    budget: float,
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    probe: Callable[..., float] | None = None,
) -> tuple[dict[str, Any], float]:
    """The best measured setting that makes a video within `budget` seconds here, and the seconds expected.

    probe: how a setting is timed on this machine. Raises ConfigError without a table, or where nothing is as fast.
    """
    table = load_table(model)
    pace = (probe or seconds_of)(model, device, table.probe.options) / table.probe.seconds
    expected = {k: table.rows[k].seconds * pace * share for k, share in _shares(model, table, frames, size).items()}
    fitting = [k for k, seconds in expected.items() if seconds <= budget]
    if not fitting:
        fastest = min(expected.values())
        raise ConfigError(
            f"no measured setting makes a video in {budget:g} s here; the fastest takes about {fastest:.3g} s",
            hint="give more time, fewer --frames or a smaller --res",
        )
    best = min(fitting, key=lambda k: table.rows[k].frechet)
    return dict(table.rows[best].options), expected[best]


def load_table(model: LoadedModel) -> SettingsTable:
    """The table measured for `model`. ConfigError if there is none, it is not readable, or is another model's."""
    places = [model.path.parent / TABLE_FILE, presets_root() / "sampling" / f"{model.sha256[:16]}.json"]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ConfigError(
            "no sampling settings were measured for this model",
            hint=f"measure them with benchmarks/sampling.py, which writes {TABLE_FILE} for {model.path.parent}",
        )
    table = _read(found)
    if table.model_sha256 != model.sha256:
        raise ConfigError(f"{found} was measured for other weights", hint="measure again with benchmarks/sampling.py")
    return table


def _read(path: Path) -> SettingsTable:
    try:
        table = SettingsTable.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, OSError) as error:
        raise ConfigError(f"{path} is not a table of sampling settings: {error}") from error
    if not table.rows:
        raise ConfigError(f"{path} holds no measured setting")
    return table


def _shares(
    model: LoadedModel, table: SettingsTable, frames: int | None, size: tuple[int, int] | None
) -> dict[int, float]:
    """`_share` of the rows that can make the wanted part; ConfigError where none can."""
    found: dict[int, float] = {}
    refusals: list[ConfigError] = []
    for k, row in enumerate(table.rows):
        try:
            found[k] = _share(model, row, frames, size)
        except ConfigError as error:  # such as the first frames of a video whose tiles overlap in time
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _share(model: LoadedModel, row: Measured, frames: int | None, size: tuple[int, int] | None) -> float:
    """The work of the wanted part over that of the whole video."""
    wanted, whole = (
        sum(stage.block_evals for stage in outline(model, frames=f, size=s, **row.options).stages)
        for f, s in ((frames, size), (None, None))
    )
    return wanted / whole


def seconds_of(model: LoadedModel, device: torch.device | str | None, options: Mapping[str, Any]) -> float:
    """Seconds of one video with `options`, the second time."""
    sample(model, num=1, device=device, **options)
    started = time.perf_counter()
    sample(model, num=1, device=device, **options)
    return time.perf_counter() - started
