"""A whole evaluation: what is checked before the first video is made, and which thread makes it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from hpdm_core.errors import ConfigError, DataError
from hpdm_core.metrics.deal import Deal
from hpdm_core.metrics.evaluate import Evaluation, evaluate
from hpdm_core.metrics.observer import Observer
from hpdm_core.metrics.protocol import Protocol
from hpdm_core.metrics.results import NamedResult, incomparable
from hpdm_core.metrics.sources import GeneratedSource

NUM = 4


class Sampler:
    """A generator that notes how many videos it made, and on which threads."""

    def __init__(self) -> None:
        self.made = 0
        self.threads: set[int] = set()

    def __call__(self, seeds: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        for seed in seeds:
            self.made += 1
            self.threads.add(threading.get_ident())
            yield seed, videos(seed, 1)[0]


def videos(seed: int, count: int = NUM, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, frames, 8, 8, 3), dtype=np.uint8)


def job(sampler: Sampler, real: Path, **changes: object) -> Evaluation:
    raw = {
        "name": "test", "clip": {"frames": 4}, "real": {"count": NUM}, "fake": {"count": NUM},
        "detector": {"name": "tests.support.toy_detector:build"},
    }  # fmt: skip
    protocol = Protocol.model_validate(raw, strict=False)
    return Evaluation(protocol, GeneratedSource(sampler, NUM, "identity"), real=real, deal=Deal(1), **changes)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    np.save(tmp_path / "real.npy", videos(100))
    return tmp_path / "real.npy"


def test_sampling_and_network_share_one_thread(real: Path) -> None:
    sampler = Sampler()
    evaluate(job(sampler, real))
    assert sampler.threads == {threading.get_ident()}


def test_observers_run_on_the_thread_of_the_network(real: Path, tmp_path: Path) -> None:
    from hpdm_core.metrics.sources import open_source

    np.save(tmp_path / "fake.npy", videos(3))
    threads = set()

    def measure(index: int, video: np.ndarray) -> dict[str, float]:
        threads.add(threading.get_ident())
        return {"width": 1.0}

    asked = job(Sampler(), real, metrics=("seam", "fvd"), observers={"seam": Observer(measure)})
    asked.fake = open_source(tmp_path / "fake.npy")
    evaluate(asked)
    assert threads == {threading.get_ident()}


def test_real_videos_are_checked_before_anything_is_sampled(real: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.safetensors"
    evaluate(job(Sampler(), real, save_stats=stats))
    np.save(tmp_path / "few.npy", videos(1, NUM - 1))
    np.save(tmp_path / "short.npy", videos(1, frames=3))
    other = job(Sampler(), stats)
    other.protocol = other.protocol.updated({"real": {"seed": 1}})
    for path, message, protocol in (
        (tmp_path / "nowhere", "does not exist", None),
        (tmp_path / "few.npy", "takes 4 real clips; there are 3", None),
        (tmp_path / "short.npy", "none of the 4 real videos has the 4 frames", None),
        (stats, "real.seed: 0 against 1", other.protocol),
    ):
        sampler = Sampler()
        asked = job(sampler, path)
        asked.protocol = protocol or asked.protocol
        with pytest.raises(DataError, match=message):
            evaluate(asked)
        assert sampler.made == 0, path
    sampler = Sampler()
    with pytest.raises(DataError, match="lacks the shuffled, static features"):
        evaluate(job(sampler, stats, metrics=("motion",)))
    assert sampler.made == 0


def test_a_cache_that_cannot_be_written_costs_a_warning(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate(job(Sampler(), real))["metrics"]
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HPDM_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert evaluate(job(Sampler(), real))["metrics"] == expected
    assert "cannot keep the real features" in caplog.text


def test_unwritable_statistics_are_refused_before_anything_is_sampled(real: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "stats.safetensors", tmp_path):
        sampler = Sampler()
        with pytest.raises(ConfigError, match="--save-stats: cannot write"):
            evaluate(job(sampler, real, save_stats=place))
        assert sampler.made == 0


def test_what_observers_depend_on_must_agree_where_both_measured_it(real: Path, tmp_path: Path) -> None:
    def result(name: str, facts: dict[str, object] | None) -> NamedResult:
        observers = {} if facts is None else {"seam": Observer(lambda i, v: {"width": 1.0}, facts)}
        metrics = ("fvd",) if facts is None else ("fvd", "seam")
        return NamedResult(Path(name), evaluate(job(Sampler(), real, metrics=metrics, observers=observers)))

    a, b, same, without = (
        result("a", {"tile": [1]}), result("b", {"tile": [2]}), result("c", {"tile": [1]}), result("d", None)
    )  # fmt: skip
    assert a.result["observers"] == {"seam": {"tile": [1]}}
    assert a.result["observers_hash"] == same.result["observers_hash"] != b.result["observers_hash"]
    assert incomparable([a, same, without]) == []
    assert incomparable([a, b]) == ["a against b: observers.seam.tile: [1] against [2]"]
