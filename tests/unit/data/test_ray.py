"""Workers of a Ray cluster; the cluster is a stand-in, for Ray is an extra."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from hpdm_core.data.ray import ADDRESS, ray_crew

CORES = 4


class FakeRay:
    """As many cores as it was started with, like Ray: all of the machine for None, and none at all for 0."""

    def __init__(self) -> None:
        self.cores: int | None = None

    def is_initialized(self) -> bool:
        return self.cores is not None

    def init(self, num_cpus: int | None = None, **_: Any) -> None:
        self.cores = CORES if num_cpus is None else num_cpus

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cores)} if self.cores else {}

    def shutdown(self) -> None:
        self.cores = None


@pytest.mark.parametrize(("workers", "most", "crew_size"), [(None, 9, 4), (0, 9, 4), (2, 9, 2), (6, 9, 6), (0, 3, 3)])
def test_no_number_of_workers_is_all_cores(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, most: int, crew_size: int
) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with ray_crew(workers, most) as crew:
        assert len(crew) == crew_size
        assert ray.cores is not None
        assert ray.cores >= crew_size, "a worker without a core waits for ever"
    assert not ray.is_initialized()
