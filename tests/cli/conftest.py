"""What several tests of the command line start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpdm_cli.app import app


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A new store of procedural clips, by the options of `prepare-data` that say how many and how large."""

    def prepare(options: str) -> Path:
        path = tmp_path_factory.mktemp("data") / "store"
        words = f"prepare-data --source synthetic {options} --workers 1 --out"
        assert CliRunner().invoke(app, [*words.split(), str(path)]).exit_code == 0
        return path

    return prepare


@pytest.fixture(scope="session")
def tiny_store(prepared: Callable[[str], Path]) -> Path:
    """Two clips, to be read only."""
    return prepared("--num 2 --frames 4 --size 16")
