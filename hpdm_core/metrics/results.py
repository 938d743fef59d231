"""Result files side by side, and whether they may be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from hpdm_core.config.document import Document
from hpdm_core.config.explain import problems_of
from hpdm_core.config.schema import Section
from hpdm_core.errors import ConfigError
from hpdm_core.metrics.protocol import differences


class _Entry(Section):
    """What is read of a metric; it may say more. A value of few videos may be no finite number."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    label: str
    value: float
    ci95: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    n_real: int | None
    n_fake: int


class _Result(Section):
    """What is read of a result."""

    model_config = ConfigDict(extra="ignore")

    metrics: dict[str, _Entry]
    protocol: dict[str, Any]
    protocol_hash: str
    networks: list[dict[str, Any]] = Field(default_factory=list)
    observers: dict[str, Any] = Field(default_factory=dict)
    real: dict[str, Any] | None = None


@dataclass(frozen=True)
class NamedResult:
    """A result and the file it came from."""

    path: Path
    result: dict[str, Any]


def read_result(path: Path) -> NamedResult:
    """Read a result of `eval-fvd --json`. Raises ConfigError where it is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    problems = _problems(result) if isinstance(result, dict) else ["no section of metrics"]
    if problems:
        raise ConfigError(
            f"{path} is not an evaluation result: {'; '.join(problems)}", hint="write one with eval-fvd --json FILE"
        )
    return NamedResult(path, result)


def _problems(result: dict[str, Any]) -> list[str]:
    """What of a result cannot be compared or shown, by key."""
    try:
        _Result.model_validate(result)
    except ValidationError as error:
        return problems_of(error, _Result, Document(result))
    return []


def incomparable(results: Sequence[NamedResult]) -> list[str]:
    """Why the results may not be compared with the first: one line per difference, empty if they may.

    The protocol (by hash), the networks' checksums, the numbers of clips and the real data must agree, and for
    metrics that both have, what CLIPSIM (network, captions) and seam (tile) depend on.
    """
    reasons: list[str] = []
    first = results[0]
    for other in results[1:]:
        pair = f"{first.path.name} against {other.path.name}"
        shared = first.result["metrics"].keys() & other.result["metrics"].keys()
        found = differences(_terms(first.result, shared), _terms(other.result, shared))
        if not found and first.result["protocol_hash"] != other.result["protocol_hash"]:
            found = [f"protocol_hash: {first.result['protocol_hash']} against {other.result['protocol_hash']}"]
        reasons += [f"{pair}: {difference}" for difference in found]
    return reasons


def _terms(result: dict[str, Any], metrics: Set[str]) -> dict[str, Any]:
    """What must agree between two results that share `metrics`."""
    protocol = {key: value for key, value in result["protocol"].items() if key != "name"}
    real = result.get("real") or {}
    counts = {name: [result["metrics"][name][side] for side in ("n_real", "n_fake")] for name in metrics}
    networks = [network.get("sha256") for network in result.get("networks", ())]
    observers = {name: facts for name, facts in result.get("observers", {}).items() if name in metrics}
    return {
        "protocol": protocol,
        "networks": networks,
        "observers": observers,
        "real_data": real.get("fingerprint"),
        "clips": counts,
    }


def metric_names(results: Sequence[NamedResult]) -> list[str]:
    """Every metric that any result has, in order of first appearance."""
    return list(dict.fromkeys(name for item in results for name in item.result["metrics"]))
