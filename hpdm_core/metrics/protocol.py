"""Evaluation protocols: everything that a number depends on, as a named, strict, hashed record.

A protocol is a YAML file in `presets/eval/` or of the user's own. Its hash covers what changes a number (clips, sizes,
network, arithmetic) and leaves out what does not (name and prose). Two results are comparable when their
hashes agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from hpdm_core.config.document import Document, parse_value, read_document
from hpdm_core.config.explain import problems_of
from hpdm_core.config.presets import presets_root
from hpdm_core.config.schema import Count, Positive, Section, Size
from hpdm_core.errors import ConfigError

Formula = Literal["exact", "float32_svd", "tfgan"]
_PROSE = ("name", "description", "source", "metrics")


class ClipSection(Section):
    """The clips that are compared.

    `size` is (H, W) of the frames before the detector's own resize; null means that of the generated videos, to which
    real ones are then brought (antialiased Lanczos; `fit` crops the centre or stretches).
    """

    frames: Count = 16
    size: Size | None = None
    fit: Literal["crop", "stretch"] = "crop"


class RealSection(Section):
    """Which real clips. Videos too short for a clip are left out and counted.

    `select: first` takes the first `count` in sorted order, `random` a seeded choice, `all` every one.
    `start` is where in its video a clip begins; `random` is seeded.
    """

    select: Literal["first", "random", "all"] = "first"
    count: Count | None = 2048
    start: Literal["first", "center", "random"] = "random"
    stride: Count = 1
    seed: int = 0

    @model_validator(mode="after")
    def _count_fits_select(self) -> RealSection:
        if (self.count is None) != (self.select == "all"):
            raise ValueError("count must be null with select: all, and a number otherwise")
        return self


class FakeSection(Section):
    """How many generated videos, and which of their frames: `stride` apart, from `start` on."""

    count: Count = 2048
    start: Literal["first", "center"] = "first"
    stride: Count = 1


class DetectorSection(Section):
    """The feature network and its preprocessing.

    `name`: i3d, random-i3d, or `package.module:factory` of the user's own. `output`, `eps`, `resize`, `fit` and
    `input_range` (what the bytes 0 and 255 become) are I3D's; see `i3d.py` and `resize.py`.
    """

    name: str = "i3d"
    output: Literal["logits", "pooled"] = "logits"
    eps: Positive = 1.0e-3
    resize: Literal["half_pixel", "half_pixel_antialias", "tf1_legacy"] = "half_pixel"
    fit: Literal["stretch", "crop"] = "stretch"
    input_range: tuple[float, float] = (-1.0, 1.0)
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"


class StatisticsSection(Section):
    """The arithmetic of the distance: `ddof` of the covariance, and whose formula gives the headline value."""

    ddof: Literal[0, 1] = 0
    formula: Formula = "exact"


class InceptionSection(Section):
    """Inception Score: class probabilities from C3D-UCF101 or from the detector; a seeded shuffle before the splits."""

    network: Literal["c3d", "detector"] = "detector"
    splits: Count = 10
    shuffle_seed: Annotated[int, Field(ge=0)] | None = 42


class Protocol(Section):
    """A whole protocol. `metrics` are computed when the command names none."""

    name: str
    description: str = ""
    source: str = ""
    metrics: tuple[str, ...] = ("fvd",)
    clip: ClipSection = ClipSection()
    real: RealSection = RealSection()
    fake: FakeSection = FakeSection()
    detector: DetectorSection = DetectorSection()
    statistics: StatisticsSection = StatisticsSection()
    inception: InceptionSection = InceptionSection()

    def with_count(self, count: int) -> Protocol:
        """The same protocol for `count` generated and `count` real clips: a different hash.

        Where the protocol takes all real clips, `count` are chosen at random.
        """
        select = "random" if self.real.select == "all" else self.real.select
        return self.updated({"fake": {"count": count}, "real": {"count": count, "select": select}})

    def updated(self, changes: dict[str, dict[str, Any]]) -> Protocol:
        """A copy with keys of sections replaced, validated again."""
        raw = self.model_dump(mode="json")
        for section, values in changes.items():
            raw[section].update(values)
        return Protocol.model_validate_json(json.dumps(raw))

    def record(self) -> dict[str, Any]:
        """Everything that the hash covers, as plain JSON."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in _PROSE}

    def real_record(self) -> dict[str, Any]:
        """The part that decides the features of the real clips: the key of their cache."""
        record = self.record()
        return {key: record[key] for key in ("clip", "real", "detector")}


def protocol_hash(protocol: Protocol, detector_sha256: str) -> str:
    """Sixteen hex digits of SHA-256 over the canonical JSON of the record and the detector's tensors."""
    return hash_record({**protocol.record(), "detector_sha256": detector_sha256})


def hash_record(record: dict[str, Any]) -> str:
    """Sixteen hex digits of SHA-256 over sorted, compact JSON."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def list_protocols() -> list[str]:
    """The names of the protocols that ship with the package, sorted."""
    return sorted(path.stem for path in (presets_root() / "eval").glob("*.yaml"))


def load_protocol(source: str | Path, overrides: Sequence[str] = ()) -> Protocol:
    """A shipped protocol by name or a YAML file by path, with `section.key=value` overrides.

    Raises ConfigError listing every problem.
    """
    document = read_document(_locate(str(source)))
    for override in overrides:
        document = document.merge(_override(override))
    problems = list(document.problems)
    try:
        protocol = Protocol.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems += problems_of(error, Protocol, document)
        protocol = None
    if protocol is None or problems:
        raise ConfigError(
            "; ".join(problems), hint="`hpdm eval-fvd --protocol NAME --dry-run` prints a protocol with every key"
        )
    return protocol


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """`section.key: x against y` for every leaf in which two records differ."""
    found: list[str] = []
    for key in sorted({*a, *b}):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}: {left} against {right}")
    return found


def _locate(source: str) -> Path:
    if "/" in source or source.endswith((".yaml", ".yml")):
        return Path(source)
    path = presets_root() / "eval" / f"{source}.yaml"
    if not path.is_file():
        near = get_close_matches(source, list_protocols(), n=1, cutoff=0.4)
        question = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no protocol is named {source!r}{question}", hint=f"there are {', '.join(list_protocols())}")
    return path


def _override(text: str) -> Document:
    """`section.key=value` as a document that holds only that key."""
    where = f"--set {text}"
    name, equals, value_text = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or len(keys) > 2 or not all(keys):
        raise ConfigError(f"{where}: expected section.key=value", hint="for example --set real.stride=3")
    value: Any = parse_value(value_text.strip())
    for key in reversed(keys):
        value = {key: value}
    return Document(value, {keys[: i + 1]: where for i in range(len(keys))})
