"""Hierarchical patch diffusion models for video: the public Python API.

    from hpdm_core import load_model, sample
    model = load_model("runs/demo")
    videos = sample(model, num=4)

Names load their modules on first use, so that importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpdm_core.errors import (
    CheckpointError,
    ConfigError,
    CorruptVideo,
    DataError,
    EnvironmentProblem,
    HpdmError,
    IncompatibleCheckpoint,
    NoCheckpoint,
    NumericsError,
    RankLost,
    StoppedOnRequest,
    StoreMismatch,
    ThresholdNotMet,
    WeightsMissing,
)
from hpdm_core.version import __version__

if TYPE_CHECKING:
    from hpdm_core.data.store import VideoStore
    from hpdm_core.families.generate import sample
    from hpdm_core.families.weights import load_model

_LAZY = {
    "VideoStore": "hpdm_core.data.store",
    "load_model": "hpdm_core.families.weights",
    "sample": "hpdm_core.families.generate",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorruptVideo",
    "DataError",
    "EnvironmentProblem",
    "HpdmError",
    "IncompatibleCheckpoint",
    "NoCheckpoint",
    "NumericsError",
    "RankLost",
    "StoppedOnRequest",
    "StoreMismatch",
    "ThresholdNotMet",
    "VideoStore",
    "WeightsMissing",
    "__version__",
    "load_model",
    "sample",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return __all__
