"""A valid config file of that family, ways to load it, and ways to damage it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hpdm_core.config.load import load_config
from hpdm_core.config.schema import RunConfig
from hpdm_core.errors import ConfigError
from tests.support.sections import GOOD, paper_sections


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A valid config file."""
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def load() -> Callable[..., RunConfig]:
    """`load(path, *overrides)` with that family."""

    def run(path: Path | str, *overrides: str) -> RunConfig:
        return load_config(path, overrides, paper_sections)

    return run


@pytest.fixture
def complaint(tmp_path: Path, load: Callable[..., RunConfig]) -> Callable[..., str]:
    """The message of the ConfigError that GOOD causes after text `old` becomes `new`."""

    def run(old: str = "", new: str = "", overrides: Sequence[str] = ()) -> str:
        path = tmp_path / "bad.yaml"
        assert old in GOOD
        path.write_text(GOOD.replace(old, new, 1) if old else GOOD)
        with pytest.raises(ConfigError) as caught:
            load(path, *overrides)
        return str(caught.value).replace(str(path), "bad.yaml")

    return run
