"""Small prepared stores that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpdm_core.data.clip import Recipe
from hpdm_core.data.codecs import Codec
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source
from hpdm_core.data.store import VideoStore


def synthetic_store(out: Path, codec: Codec, *, num_clips: int = 20, num_frames: int = 12) -> VideoStore:
    """Procedural clips at 32x48 and 16x24."""
    scan = scan_source(SourceOptions(kind="synthetic", num_clips=num_clips, num_frames=num_frames, seed=3))
    prepare_store(scan, out, Recipe(((32, 48), (16, 24)), codec), PrepareOptions(workers=1))
    return VideoStore.open(out)


@pytest.fixture(scope="session")
def raw_store(tmp_path_factory: pytest.TempPathFactory) -> VideoStore:
    """20 clips of 12 frames, raw. Read only."""
    return synthetic_store(tmp_path_factory.mktemp("raw") / "store", "raw")


@pytest.fixture(scope="session")
def jpeg_store(tmp_path_factory: pytest.TempPathFactory) -> VideoStore:
    """The same, as JPEG. Read only."""
    return synthetic_store(tmp_path_factory.mktemp("jpeg") / "store", "jpeg")
