"""Named and measured sampling settings: `--fast`, and `--budget` from a table of what was measured for this very model.

A table is JSON that `benchmarks/sampling.py` writes. It lies beside the weights (`sampling.json`) or among the presets
(`sampling/<first 16 hex digits of the weights' sha256>.json`). Distances hold wherever a video is made, times for one
kind of device: on a GPU calls of few tiles wait for launches, on a CPU time goes with the calls. A short probe, timed
on the table's machine of that kind and here, tells how this one compares.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue, ValidationError, model_validator

from hpdm_core.config.document import Document
from hpdm_core.config.explain import problems_of
from hpdm_core.config.presets import presets_root
from hpdm_core.config.schema import Positive, Section
from hpdm_core.errors import ConfigError
from hpdm_core.families.generate import outline, sample
from hpdm_core.families.weights import LoadedModel
from hpdm_core.nn.devices import pick_device

TABLE_FILE = "sampling.json"
AGAIN = "measure again with benchmarks/sampling.py"


class Measured(Section):
    """One setting: keys of the sample section, the Fréchet distance reached, network calls of one whole video."""

    options: dict[str, JsonValue]
    frechet: float
    calls: int


class Timed(Section):
    """One machine: its name, the keys that its kind samples best with, seconds of the probe and of every row."""

    machine: str
    options: dict[str, JsonValue]
    probe: Positive
    rows: tuple[Positive, ...]


class SettingsTable(Section):
    """What was measured for one model. `distance` says which Fréchet distance; `probe` is a short run's setting.

    times: by kind of device, such as `cpu` or `cuda`; a kind that is not there takes the first one's.
    """

    model_sha256: str
    distance: str
    rows: Annotated[tuple[Measured, ...], Field(min_length=1)]
    probe: dict[str, JsonValue]
    times: Annotated[dict[str, Timed], Field(min_length=1)]

    @model_validator(mode="after")
    def _every_row_is_timed(self) -> SettingsTable:
        for kind, times in self.times.items():
            if len(times.rows) != len(self.rows):
                raise ValueError(f"times.{kind} has seconds for {len(times.rows)} of {len(self.rows)} rows")
        return self

    def of(self, device: torch.device) -> Timed:
        """The times that tell most about `device`."""
        return self.times.get(device.type) or next(iter(self.times.values()))


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
    times = table.of(pick_device(device))
    pace = (probe or seconds_of)(model, device, {**table.probe, **times.options}) / times.probe
    expected = {k: times.rows[k] * pace * share for k, share in _shares(model, table, frames, size).items()}
    fitting = [k for k, seconds in expected.items() if seconds <= budget]
    if not fitting:
        fastest = min(expected.values())
        raise ConfigError(
            f"no measured setting makes a video in {budget:g} s here; the fastest takes about {fastest:.3g} s",
            hint="give more time, fewer --frames or a smaller --res",
        )
    best = min(fitting, key=lambda k: table.rows[k].frechet)
    return {**table.rows[best].options, **times.options}, expected[best]


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
        raise ConfigError(f"{found} was measured for other weights", hint=AGAIN)
    return table


def _read(path: Path) -> SettingsTable:
    data: Any = None
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        return SettingsTable.model_validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(problems_of(error, SettingsTable, Document(data)))
    except (OSError, ValueError) as error:  # no JSON, or no text
        wrong = str(error)
    raise ConfigError(f"{path} is not a table of sampling settings: {wrong}", hint=AGAIN)


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
