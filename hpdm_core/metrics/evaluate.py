"""One evaluation from end to end: read both sides by protocol, run the networks, score, assemble the result.

The result is plain JSON that says how every number came about: protocol and hash, networks by checksum, data by
fingerprint, counts, and warnings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpdm_core.data.disk import require_writable
from hpdm_core.errors import ConfigError
from hpdm_core.metrics.c3d import build_c3d
from hpdm_core.metrics.deal import Deal
from hpdm_core.metrics.detectors import Detector, build_detector
from hpdm_core.metrics.features import (
    VIEWS,
    FeatureSet,
    Job,
    Selection,
    View,
    check_count,
    count_real,
    extract,
    fake_clips,
    real_clips,
    require_one_size,
)
from hpdm_core.metrics.inception import require_splits
from hpdm_core.metrics.observer import Observer
from hpdm_core.metrics.protocol import Protocol, hash_record, protocol_hash
from hpdm_core.metrics.real_cache import (
    RealFeatures,
    cache_path,
    is_features_file,
    keep_real,
    load_cached,
    load_real,
    require_record,
    require_views,
    save_real,
)
from hpdm_core.metrics.scores import METRICS, Tables, parse_metrics
from hpdm_core.metrics.sources import VideoSource, open_source
from hpdm_core.version import __version__

FORMAT = 1
SMALL_N = 2048
Progress = Callable[[str, int, int], None]
"""Told the side, how many more of its clips are done (0 as it begins), and how many this process takes at most."""
log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What to evaluate and with what.

    real: a store, folder, array or statistics file; None where no metric needs one. fake: an opened source.
    observers: numbers per generated video beside the networks, by metric name (`seam`, `clipsim`).
    deal: which clips this process takes, where several share the work; each of them gets the whole result.
    """

    protocol: Protocol
    fake: VideoSource
    real: Path | None = None
    metrics: tuple[str, ...] = ()
    weights: Path | None = None
    c3d_weights: Path | None = None
    allow_imagenet: bool = False
    device: str = "cpu"
    deal: Deal = field(default_factory=Deal)
    workers: int = 4
    use_cache: bool = True
    save_stats: Path | None = None
    observers: dict[str, Observer] = field(default_factory=dict)
    about_fake: dict[str, Any] = field(default_factory=dict)
    progress: Progress = lambda what, clips, total: None


@dataclass(frozen=True)
class _Ready:
    """What an evaluation works with, checked as far as it can be without reading a video."""

    metrics: tuple[str, ...]
    detector: Detector | None
    c3d: Detector | None
    views: tuple[View, ...]
    given: VideoSource | RealFeatures | None


def check_evaluation(job: Evaluation) -> None:
    """Raise what `evaluate` would, as far as that is known before any video is read or sampled."""
    _ready(job)


def _ready(job: Evaluation) -> _Ready:
    metrics = parse_metrics(job.metrics or job.protocol.metrics)
    detector, c3d = _networks(job, metrics)
    views: tuple[View, ...] = tuple(v for v in VIEWS if _needs(metrics, v, job.protocol))
    _check_inputs(job, metrics, detector, c3d)
    check_count(job.fake, job.protocol)
    compared = detector is not None and any(METRICS[name].real for name in metrics)
    return _Ready(metrics, detector, c3d, views, _open_real(job, detector, views) if compared else None)


def evaluate(job: Evaluation) -> dict[str, Any]:
    """Run an evaluation and return its result as plain JSON.

    Raises DataError (too short, too few, mixed sizes, wrong statistics file), WeightsMissing, ConfigError.
    """
    ready = _ready(job)
    metrics, detector, c3d, views, given = ready.metrics, ready.detector, ready.c3d, ready.views, ready.given
    jobs = {view: Job(detector, view) for view in views if detector is not None}
    if c3d is not None:
        jobs["c3d"] = Job(c3d)
    seen = Selection()
    observed: dict[str, list[dict[str, float]]] = {name: [] for name in job.observers}
    clips = _observe(fake_clips(job.fake, job.protocol, seen, job.workers, job.deal), job, observed)
    # Neither a source that samples nor an observer with a network may run beside the detector.
    read_ahead = job.fake.concurrent and not job.observers
    fake = _extracted(job, "generated clips", job.protocol.fake.count, clips, jobs, read_ahead=read_ahead)
    parts = job.deal.gather(seen)
    require_one_size(parts)
    seen = Selection.merged(parts)
    observed = {name: _gathered(rows, job.deal) for name, rows in observed.items()}
    protocol = job.protocol.updated({"clip": {"size": list(seen.size or ())}})
    real: RealFeatures | None = None
    if detector is not None and given is not None:
        real = _real_features(job, given, protocol, detector, views)
    tables = Tables(protocol, detector, fake, real.sets if real else {}, c3d, observed)
    scores = {name: METRICS[name].score(tables) for name in metrics}
    result = _result(job, protocol, detector, c3d, real, seen)
    result["metrics"] = {name: score.as_json() for name, score in scores.items()}
    result["warnings"] = _warnings(job, protocol, detector, real, seen, metrics)
    return result


def needs_c3d(metrics: Sequence[str], protocol: Protocol) -> bool:
    """Whether `metrics` read the C3D network."""
    return "is" in metrics and protocol.inception.network == "c3d"


def needs_detector(metrics: Sequence[str], protocol: Protocol) -> bool:
    """Whether `metrics` read the protocol's detector."""
    return any(_needs(metrics, view, protocol) for view in VIEWS)


def _needs(metrics: Iterable[str], view: str, protocol: Protocol) -> bool:
    """Whether any metric reads the main detector's features of `view`."""
    own_network = {"is"} if protocol.inception.network == "c3d" else set()
    return any(view in METRICS[name].jobs for name in metrics if name not in own_network)


def _networks(job: Evaluation, metrics: tuple[str, ...]) -> tuple[Detector | None, Detector | None]:
    detector, c3d = None, None
    if needs_c3d(metrics, job.protocol):
        c3d = build_c3d(job.c3d_weights, job.device)
    if needs_detector(metrics, job.protocol):
        section = job.protocol.detector
        detector = build_detector(section, weights=job.weights, device=job.device, allow_imagenet=job.allow_imagenet)
    return detector, c3d


def _check_inputs(job: Evaluation, metrics: tuple[str, ...], detector: Detector | None, c3d: Detector | None) -> None:
    """What can be known before any video is read."""
    frames = job.protocol.clip.frames
    for network in (detector, c3d):
        if network is not None and frames < network.min_frames:
            raise ConfigError(
                f"{network.name} needs clips of {network.min_frames} frames; the protocol has {frames}",
                hint=f"use --set clip.frames={network.min_frames} or more",
            )
    if c3d is not None and frames != c3d.min_frames:
        raise ConfigError(f"C3D takes clips of {c3d.min_frames} frames; the protocol has {frames}")
    if job.real is None and any(METRICS[name].real for name in metrics):
        raise ConfigError("these metrics compare with real videos", hint="give --real STORE, FOLDER or statistics file")
    if "is" in metrics:
        require_splits(job.protocol.fake.count, job.protocol.inception.splits)
    for name in ("seam", "clipsim"):
        if name in metrics and name not in job.observers:
            need = "--tile TxHxW" if name == "seam" else "--clip-weights FILE and captions"
            raise ConfigError(f"metric {name} needs {need}")


def _observe(
    clips: Iterable[np.ndarray], job: Evaluation, observed: dict[str, list[dict[str, float]]]
) -> Iterator[np.ndarray]:
    """Pass clips on, noting each observer's number for each."""
    for own, clip in enumerate(clips):
        for name, observer in job.observers.items():
            observed[name].append(observer(job.deal.position(own), clip))
        yield clip


def _gathered(rows: list[dict[str, float]], deal: Deal) -> list[dict[str, float]]:
    """What all ranks have observed, in the order of the clips."""
    parts = deal.gather(rows)
    together = [row for part in parts for row in part]
    return [together[place] for place in deal.order([len(part) for part in parts])]


def _extracted(
    job: Evaluation,
    what: str,
    count: int,
    clips: Iterable[np.ndarray],
    jobs: Mapping[str, Job],
    *,
    read_ahead: bool = True,
) -> dict[str, FeatureSet]:
    """The features of one side, whose clips are `count` at most over all ranks."""
    own = len(job.deal.mine(range(count)))

    def advance(done: int) -> None:
        job.progress(what, done, own)

    advance(0)
    return extract(clips, jobs, deal=job.deal, device=job.device, advance=advance, read_ahead=read_ahead)


def _open_real(job: Evaluation, detector: Detector | None, views: tuple[View, ...]) -> VideoSource | RealFeatures:
    """The real side as far as it can be checked before the generated one is read or sampled."""
    assert job.real is not None
    assert detector is not None
    if job.save_stats is not None:
        require_writable(job.save_stats, "--save-stats")
    if not (job.real.is_file() and is_features_file(job.real)):
        source = open_source(job.real)
        count_real(source, job.protocol)
        return source
    real = load_real(job.real)
    # Where the protocol leaves the size to the generated videos, it is not known yet: taken as the file's.
    sized = job.protocol.clip.size or real.record.get("clip", {}).get("size")
    record = _real_record(job.protocol.updated({"clip": {"size": sized}}), detector)
    require_record(real, record, job.real)
    require_views(real, views, job.real)
    return real


def _real_record(protocol: Protocol, detector: Detector) -> dict[str, Any]:
    """What decides the real features."""
    return {**protocol.real_record(), "detector_sha256": detector.sha256}


def _real_features(
    job: Evaluation,
    given: VideoSource | RealFeatures,
    protocol: Protocol,
    detector: Detector,
    views: tuple[View, ...],
) -> RealFeatures:
    """The real side from a statistics file, the cache, or the videos."""
    assert job.real is not None
    record = _real_record(protocol, detector)
    if isinstance(given, RealFeatures):
        require_record(given, record, job.real)
        real = given
    else:
        path = cache_path(record, given.identity())
        real = load_cached(path, views) if job.use_cache else None
        if not job.deal.agree(real is not None) or real is None:
            real = _extract_real(job, given, protocol, detector, views, record)
            if job.use_cache and job.deal.main:
                keep_real(path, real)
    if job.save_stats is not None and job.deal.main:
        save_real(job.save_stats, real)
    return real


def _extract_real(
    job: Evaluation,
    source: VideoSource,
    protocol: Protocol,
    detector: Detector,
    views: tuple[View, ...],
    record: dict[str, Any],
) -> RealFeatures:
    seen = Selection()
    clips = real_clips(source, protocol, seen, job.workers, job.deal)
    jobs = {view: Job(detector, view) for view in views}
    sets = _extracted(job, "real clips", count_real(source, protocol), clips, jobs)
    seen = Selection.merged(job.deal.gather(seen))
    about = {
        "kind": source.kind,
        "fingerprint": source.fingerprint(),
        "lossy": source.lossy,
        "videos": len(source),
        "clips": seen.count,
        "too_short": seen.too_short,
        "source_size": list(seen.source_size or ()),
    }
    return RealFeatures(sets, record, about)


def _result(
    job: Evaluation,
    protocol: Protocol,
    detector: Detector | None,
    c3d: Detector | None,
    real: RealFeatures | None,
    seen: Selection,
) -> dict[str, Any]:
    sha256 = ",".join(network.sha256 for network in (detector, c3d) if network is not None)
    observers = {name: observer.facts for name, observer in job.observers.items()}
    fake = {
        "kind": job.fake.kind,
        "fingerprint": job.fake.fingerprint(),
        "lossy": job.fake.lossy,
        "clips": seen.count,
        "size": list(seen.source_size or ()),
        **job.about_fake,
    }
    return {
        "format": FORMAT,
        "hpdm": __version__,
        "protocol": {"name": protocol.name, **protocol.record()},
        "protocol_hash": protocol_hash(protocol, sha256),
        "observers": observers,
        "observers_hash": hash_record(observers) if observers else None,
        "networks": [network.facts() for network in (detector, c3d) if network is not None],
        "real": {"path": str(job.real), **real.about} if real else None,
        "fake": fake,
        "device": torch.cuda.get_device_name(job.device) if job.device.startswith("cuda") else job.device,
        "torch": torch.__version__,
    }


def _warnings(
    job: Evaluation,
    protocol: Protocol,
    detector: Detector | None,
    real: RealFeatures | None,
    seen: Selection,
    metrics: tuple[str, ...],
) -> list[str]:
    """What a reader must know before quoting the numbers."""
    found: list[str] = []
    if detector is not None and detector.label != "FVD":
        found.append(f"{detector.label} is not FVD: {detector.facts().get('network', detector.name)}")
    if real is not None and {"fvd", "frame"} & set(metrics):
        n = min(seen.count, real.count)
        if detector is not None and n <= detector.dimension:
            found.append(f"{n} clips for {detector.dimension} features: the covariance is singular, the bias is large")
        if n < SMALL_N:
            found.append(f"N = {n}: FVD falls with N; compare only with results of the same N")
    if job.fake.lossy != bool(real.about.get("lossy")) if real else False:
        which = "generated" if job.fake.lossy else "real"
        found.append(f"only the {which} videos went through a lossy codec, and FVD sees the difference")
    if real is not None and real.about.get("too_short"):
        found.append(f"{real.about['too_short']} real videos were too short for a clip and left out")
    size = tuple(protocol.clip.size or ())
    if seen.source_size is not None and size and seen.source_size != size:
        found.append("generated videos were resized from {}x{} to {}x{}".format(*seen.source_size, *size))
    if real is not None and real.about.get("source_size") and tuple(real.about["source_size"]) != size:
        found.append("real videos were resized from {}x{} to {}x{}".format(*real.about["source_size"], *size))
    return found
