"""The metrics by name: what each needs, and its value with an interval from tables of features.

Adding a metric is one function and one line in METRICS.

Shapes: N samples, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from hpdm_core.errors import ConfigError
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.features import FeatureSet
from hpdm_core.metrics.frechet import frechet_distance
from hpdm_core.metrics.inception import inception_score
from hpdm_core.metrics.interval import NORMAL_95, frechet_limit, frechet_standard_error
from hpdm_core.metrics.kernel import KernelDistance, jedi_distance, kernel_video_distance
from hpdm_core.metrics.peer_formulas import distance_by
from hpdm_core.metrics.protocol import Protocol


@dataclass
class Score:
    """One metric: what it is called here, its value and 95 % interval, sample sizes, and details as plain JSON."""

    label: str
    value: float
    ci95: tuple[float, float] | None
    n_real: int | None
    n_fake: int
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The entry `metrics.<name>` of a result."""
        known = self.ci95 is not None and np.isfinite(self.ci95).all()
        ci95 = list(self.ci95) if self.ci95 is not None and known else None
        head = {"label": self.label, "value": self.value, "ci95": ci95}
        return {**head, "n_real": self.n_real, "n_fake": self.n_fake, **self.details}


@dataclass
class Tables:
    """All that metrics read: features by job name of both sides, the networks and the protocol."""

    protocol: Protocol
    detector: Detector | None
    fake: Mapping[str, FeatureSet]
    real: Mapping[str, FeatureSet]
    c3d: Detector | None = None
    observed: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)

    def label(self, name: str) -> str:
        """`name` with the detector's mark: `rFVD` and `rKVD` for random weights, `FVD[...]` for others than FVD's."""
        mark = self.detector.label if self.detector else "FVD"
        if mark.startswith("r"):
            return f"r{name}"
        return name + mark.removeprefix("FVD") if mark.startswith("FVD") else f"{name}[{mark}]"


@dataclass(frozen=True)
class Metric:
    """`jobs`: the views of the main detector it reads (c3d apart); `real`: whether real clips are needed."""

    score: Callable[[Tables], Score]
    jobs: tuple[str, ...] = ("video",)
    real: bool = True


def fvd(tables: Tables) -> Score:
    """Fréchet video distance by the protocol, with interval and limit."""
    return _frechet(tables, "video", "FVD")


def frame(tables: Tables) -> Score:
    """The same distance on static clips (each clip's middle frame repeated): content without motion."""
    return _frechet(tables, "static", "FVD-static")


def _frechet(tables: Tables, job: str, name: str) -> Score:
    statistics = tables.protocol.statistics
    fake, real = tables.fake[job], tables.real[job]
    a, b = fake.statistics.gaussian(statistics.ddof), real.statistics.gaussian(statistics.ddof)
    exact = frechet_distance(a, b)
    value = exact
    if statistics.formula != "exact":
        value = distance_by(statistics.formula, fake.features, real.features, statistics.ddof)
    error = frechet_standard_error(fake.features, real.features, a, b)
    limit = frechet_limit(fake.features, real.features, statistics.ddof)
    deficient = min(a.count, b.count) <= a.mean.size
    details: dict[str, Any] = {
        "exact": exact,
        "standard_error": error.total if np.isfinite(error.total) else None,
        "standard_error_fake": error.fake if np.isfinite(error.fake) else None,
        "limit": None,
        "rank_deficient": deficient,
    }
    if limit is not None:
        details["limit"] = {
            "value": limit.value,
            "ci95": list(limit.ci95),
            "standard_error": limit.standard_error,
            "rough": limit.rough,
        }
    half = NORMAL_95 * error.total
    return Score(tables.label(name), value, (max(value - half, 0.0), value + half), b.count, a.count, details)


def kvd(tables: Tables) -> Score:
    """Kernel video distance: unbiased MMD^2, cubic kernel."""
    return _kernel(tables, "KVD", kernel_video_distance)


def jedi(tables: Tables) -> Score:
    """JEDi's kernel distance on this detector's features."""
    return _kernel(tables, "JEDi-MMD", jedi_distance)


def _kernel(tables: Tables, name: str, distance: Callable[[np.ndarray, np.ndarray], KernelDistance]) -> Score:
    fake, real = tables.fake["video"].features, tables.real["video"].features
    found = distance(fake, real)
    half = NORMAL_95 * found.standard_error
    interval = (found.value - half, found.value + half)
    return Score(tables.label(name), found.value, interval, len(real), len(fake))


def inception(tables: Tables) -> Score:
    """Inception Score from C3D-UCF101, or from the detector's classes as the protocol says."""
    rule = tables.protocol.inception
    job, network = ("c3d", tables.c3d) if rule.network == "c3d" else ("video", tables.detector)
    assert network is not None
    features = tables.fake[job].features
    probabilities = network.probabilities(torch.from_numpy(features))
    if probabilities is None:
        raise ConfigError(
            f"detector {network.name} has no class probabilities", hint="use --set detector.output=logits"
        )
    found = inception_score(probabilities.numpy(), rule.splits, rule.shuffle_seed)
    label = "IS (C3D-UCF101)" if rule.network == "c3d" else f"{tables.label('IS')} ({network.name})"
    details = {"std": found.std, "splits": found.splits}
    return Score(label, found.value, found.ci95, None, len(features), details)


def motion(tables: Tables) -> Score:
    """The part of the distance that static clips do not show, 1 - static/whole, between 0 and 1.

    Frame order alone is judged by the distance between both sides with their frames shuffled.
    """
    distances = {job: _plain_distance(tables, job) for job in ("video", "static", "shuffled")}
    whole = distances["video"]
    share = min(max(1.0 - distances["static"] / whole, 0.0), 1.0) if whole > 0 else 0.0
    details = {
        "whole": whole,
        "static": distances["static"],
        "shuffled": distances["shuffled"],
        "fake_order_effect": _between(tables, tables.fake["video"], tables.fake["shuffled"]),
        "real_order_effect": _between(tables, tables.real["video"], tables.real["shuffled"]),
        "fake_frozen_effect": _between(tables, tables.fake["video"], tables.fake["static"]),
        "real_frozen_effect": _between(tables, tables.real["video"], tables.real["static"]),
    }
    n_real, n_fake = len(tables.real["video"].features), len(tables.fake["video"].features)
    return Score(tables.label("motion share"), share, None, n_real, n_fake, details)


def _plain_distance(tables: Tables, job: str) -> float:
    return _between(tables, tables.fake[job], tables.real[job])


def _between(tables: Tables, a: FeatureSet, b: FeatureSet) -> float:
    ddof = tables.protocol.statistics.ddof
    return frechet_distance(a.statistics.gaussian(ddof), b.statistics.gaussian(ddof))


def seam(tables: Tables) -> Score:
    """Seam ratio of the worst axis: geometric mean over videos, since ratios of dark or still videos vary wildly."""
    noted = tables.observed["seam"]
    if not noted[0]:
        raise ConfigError("seam: no tile border lies inside the videos", hint="give the tile that they were made of")
    logs = {axis: np.log(np.clip([row[axis] for row in noted], 1e-3, 1e3)) for axis in noted[0]}
    means = {axis: float(np.exp(values.mean())) for axis, values in logs.items()}
    worst = max(means, key=lambda axis: means[axis])
    interval = _normal_interval(logs[worst])
    ci95 = (float(np.exp(interval[0])), float(np.exp(interval[1]))) if interval else None
    return Score("seam ratio", means[worst], ci95, None, len(noted), {"axes": means})


def clipsim(tables: Tables) -> Score:
    """Mean cosine of CLIP's image and text vectors, over frames and then over videos."""
    values = np.array([row["cosine"] for row in tables.observed["clipsim"]])
    return Score("CLIPSIM", float(values.mean()), _normal_interval(values), None, len(values))


def _normal_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values; None for a single one."""
    if len(values) < 2:
        return None
    half = NORMAL_95 * float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


METRICS: dict[str, Metric] = {
    "fvd": Metric(fvd),
    "kvd": Metric(kvd),
    "jedi": Metric(jedi),
    "is": Metric(inception, real=False),
    "frame": Metric(frame, jobs=("static",)),
    "motion": Metric(motion, jobs=("video", "static", "shuffled")),
    "seam": Metric(seam, jobs=(), real=False),
    "clipsim": Metric(clipsim, jobs=(), real=False),
}


def parse_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without repeats; ConfigError for an unknown one."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        near = get_close_matches(unknown[0].lower(), METRICS, n=1)
        question = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown metric {', '.join(unknown)}{question}", hint=f"there are {', '.join(METRICS)}")
    return tuple(dict.fromkeys(names))
