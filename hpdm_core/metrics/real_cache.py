"""Features of real clips on disk: computed once per protocol, written atomically, verified on every read.

The same file serves as a statistics file that is passed on: `--save-stats FILE` writes it, `--real FILE` reads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hpdm_core.errors import DataError
from hpdm_core.metrics.features import FeatureSet
from hpdm_core.metrics.protocol import differences, hash_record
from hpdm_core.nn.tensor_files import write_tensors

FORMAT = 1
_KEY = "hpdm-features"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealFeatures:
    """Features of the real clips by view, and how they were made.

    `record` is the protocol's real part with the detector's sha256; `about` says which data: kind, fingerprint, counts.
    """

    sets: dict[str, FeatureSet]
    record: dict[str, Any]
    about: dict[str, Any]

    @property
    def count(self) -> int:
        """Number of clips."""
        return len(next(iter(self.sets.values())).features)


def cache_folder() -> Path:
    """Where real features are kept: $HPDM_CACHE, by default ~/.cache/hpdm, below `features`."""
    return Path(os.environ.get("HPDM_CACHE") or Path.home() / ".cache" / "hpdm").expanduser() / "features"


def cache_path(record: dict[str, Any], fingerprint: str) -> Path:
    """The cache file of a real record over the data with this fingerprint."""
    return cache_folder() / f"{hash_record({'record': record, 'data': fingerprint})}.safetensors"


def save_real(path: Path, real: RealFeatures) -> None:
    """Write features atomically, with a checksum of their bytes. Raises OSError."""
    tensors = {view: torch.from_numpy(features.features) for view, features in real.sets.items()}
    header = {"format": FORMAT, "record": real.record, "about": real.about, "sha256": _digest(tensors)}
    write_tensors(path, tensors, {_KEY: json.dumps(header, sort_keys=True)})


def keep_real(path: Path, real: RealFeatures) -> None:
    """`save_real` into the cache: one that cannot be written costs time next time, not this evaluation."""
    try:
        save_real(path, real)
    except OSError as error:
        log.warning("cannot keep the real features in %s (%s); they will be computed again next time", path, error)


def is_features_file(path: Path) -> bool:
    """Whether `path` is a statistics file of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_real(path: Path) -> RealFeatures:
    """Read features back. Raises DataError where the file is damaged, foreign or from another version."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a statistics file: {error}", hint="make one with --save-stats FILE") from error
    if header.get("format") != FORMAT or header.get("sha256") != _digest(tensors):
        raise DataError(f"{path} is damaged or of another version", hint="make it again with --save-stats FILE")
    sets: dict[str, FeatureSet] = {}
    for view, tensor in tensors.items():
        sets[view] = FeatureSet()
        sets[view].add(tensor.numpy())
    return RealFeatures(sets, header["record"], header["about"])


def load_cached(path: Path, views: Iterable[str]) -> RealFeatures | None:
    """The cached features if they are intact and hold all `views`; a damaged file is reported and passed over."""
    try:
        if not path.is_file():
            return None
        real = load_real(path)
    except OSError as error:
        log.warning("cannot read the cache: %s", error)
        return None
    except DataError as error:
        log.warning("%s; computing the real features again", error)
        return None
    return real if set(views) <= set(real.sets) else None


def require_views(real: RealFeatures, views: Iterable[str], where: Path) -> None:
    """Raise DataError where a statistics file lacks a view that the metrics need."""
    missing = set(views) - set(real.sets)
    if missing:
        raise DataError(f"{where} lacks the {', '.join(sorted(missing))} features that the metrics need")


def require_record(real: RealFeatures, record: dict[str, Any], where: Path) -> None:
    """Raise DataError naming each difference between how a statistics file was made and what the protocol asks."""
    found = differences(real.record, record)
    if found:
        raise DataError(
            f"{where} was made by another protocol (file against protocol): {'; '.join(found)}",
            hint="make it again for this protocol, or choose the protocol it was made by",
        )


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
