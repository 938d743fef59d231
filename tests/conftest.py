"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The optional folder of real videos and reference files: $HPDM_SHARED, else one beside the repository."""
    path = Path(os.environ.get("HPDM_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no folder of reference files; set HPDM_SHARED to test against one")
    return path
