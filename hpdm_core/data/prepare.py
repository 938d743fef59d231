"""`prepare-data`: from a scan of sources to a store, in parallel, interruptible, with bad files set aside.

Clips are divided into shards in the order of the scan. Shards are independent pieces of work: each is made by one
thread that drives one killable child process, so the bytes of a store do not depend on the number of workers
or on interruptions. A finished shard is rewritten only where it is damaged, or where a clip failed that may succeed now
(`resume`).
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from hpdm_core.data.backends import CHILD_ENVIRONMENT, available_backends
from hpdm_core.data.claim import claimed, store_plan
from hpdm_core.data.clip import Recipe, prepare_clips
from hpdm_core.data.disk import writing_to
from hpdm_core.data.isolate import ChildDied, DeadlineExceeded, IsolatedWorker, Worker, WorkerLost
from hpdm_core.data.resume import RETRIED, standing_record
from hpdm_core.data.shard import (
    CLIPS_PER_SHARD,
    Record,
    ShardBuilder,
    has_its_files,
    read_shard_record,
    write_json,
    write_text,
)
from hpdm_core.data.sources.base import Problem, Scan, SourceClip
from hpdm_core.data.store import INDEX, QUARANTINE, SCHEMA, STORE_FILE, store_fingerprint
from hpdm_core.errors import CorruptVideo, DataError, EnvironmentProblem, HpdmError
from hpdm_core.version import __version__

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]
NumberedShards = list[tuple[int, tuple[SourceClip, ...]]]

REPORT_SECONDS = 1.0
ATTEMPTS = 4
"""How often one shard is begun before a cluster that keeps losing its workers ends the run."""


@dataclass(frozen=True)
class PrepareOptions:
    """How to run. Nothing here changes the bytes of the store.

    `max_bad` clips may fail: an int is a number, a float a share of all. `deadline` is seconds per clip;
    procedural clips, which no decoder can hang, are made a shard at a time and share theirs.
    `workers: None` (or 0) takes all cores: of this machine, or under engine "ray" of the cluster.
    """

    max_bad: float | int = 0.01
    deadline: float = 120.0
    workers: int | None = None
    engine: Engine = "local"


@dataclass(frozen=True)
class Progress:
    """Where a preparation stands; `resumed` clips were already there when it began."""

    done: int
    total: int
    kept: int
    bad: int
    frames: int
    resumed: int = 0


@dataclass(frozen=True)
class Summary:
    """What came of it. `reasons` counts the quarantined clips."""

    store: Path
    num_clips: int
    num_frames: int
    reasons: dict[str, int]
    num_bytes: int
    fingerprint: str

    @property
    def num_bad(self) -> int:
        """Clips that could not be used."""
        return sum(self.reasons.values())


def prepare_store(
    scan: Scan,
    out: Path,
    recipe: Recipe,
    options: PrepareOptions,
    *,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Prepare every clip of `scan` into the store at `out`, continuing one that was interrupted.

    Clips that failed for a reason that may pass, such as the deadline, are tried again. `command` is recorded in the
    store as what made it. Raises ConfigError if `out` holds something else or may not be written, DataError if its disk
    is full, or, after all clips were tried, if more than `options.max_bad` failed or none is left.
    """
    available_backends(recipe.backends)
    shards = _cut(scan)
    with claimed(out, store_plan(scan, recipe)):
        _Work(out, scan, recipe, options, on_progress).run(shards)
        return _complete(out, scan, recipe, options, _records(out, shards), command)


def prepare_share(
    scan: Scan,
    out: Path,
    recipe: Recipe,
    options: PrepareOptions,
    share: tuple[int, int],
    *,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary | None:
    """Prepare share `(i, n)`, 1 <= i <= n, of the shards; n processes with the same `scan` make a whole store.

    The one that finds all shards made completes the store and returns its summary; the others return None. Where
    some were lost, `prepare_store` makes what is missing. Otherwise as `prepare_store`.
    """
    available_backends(recipe.backends)
    shards = _cut(scan)
    index, count = share
    mine = [(number, clips) for number, clips in shards if number % count == index - 1]
    own = replace(scan, clips=tuple(clip for _, clips in mine for clip in clips), problems=())
    with claimed(out, store_plan(scan, recipe), shared=True) as claim:
        _Work(out, own, recipe, options, on_progress).run(mine)
        records = _records(out, shards)
        if len(records) < len(shards) or not all(has_its_files(out, record) for record in records):
            return None
        claim.await_others()  # they have found, or will find, the same: the first completes, the next repeat it
        return _complete(out, scan, recipe, options, _records(out, shards), command)


def _cut(scan: Scan) -> NumberedShards:
    """The clips of each shard, with its number."""
    starts = range(0, len(scan.clips), CLIPS_PER_SHARD)
    return [(number, scan.clips[i : i + CLIPS_PER_SHARD]) for number, i in enumerate(starts)]


def _records(out: Path, shards: NumberedShards) -> list[Record]:
    """The records of the shards that are finished."""
    return [record for number, _ in shards if (record := read_shard_record(out, number)) is not None]


class _Work:
    """The running preparation: threads, children, and the count of what is done."""

    def __init__(
        self, out: Path, scan: Scan, recipe: Recipe, options: PrepareOptions, on_progress: Callable[[Progress], None]
    ) -> None:
        self._out = out
        self._recipe = recipe
        self._deadline = options.deadline
        self._options = options
        self._labels = {name: i for i, name in enumerate(scan.classes)}
        self._report = on_progress
        self._total = len(scan.clips) + len(scan.problems)
        self._kept = self._frames = self._resumed = 0
        self._bad = len(scan.problems)
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def run(self, shards: NumberedShards) -> None:
        """Make every shard that is not finished."""
        pending: NumberedShards = []
        for number, clips in shards:
            record = standing_record(self._out, number, clips)
            if record is None:
                pending.append((number, clips))
            else:
                self._resumed += len(clips)
                self._kept += len(record["clips"])
                self._bad += len(record["quarantine"])
                self._frames += sum(clip["num_frames"] for clip in record["clips"])
        if pending:  # the store is not whole until they are done
            with writing_to(self._out):
                (self._out / STORE_FILE).unlink(missing_ok=True)
        self._count()
        if pending:
            with _crew(self._options, len(pending)) as crew:
                self._share_out(pending, crew)

    def _share_out(self, pending: NumberedShards, crew: list[Worker]) -> None:
        children: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for child in crew:
            children.put(child)
        with ThreadPoolExecutor(len(crew)) as pool:
            try:
                tasks = [pool.submit(self._make_shard, number, clips, children) for number, clips in pending]
                unfinished = set(tasks)
                while unfinished:
                    done, unfinished = wait(unfinished, timeout=REPORT_SECONDS, return_when=FIRST_EXCEPTION)
                    for task in done:
                        task.result()
                    self._count()  # also while nothing moves, so that a heartbeat can beat
            finally:  # also on Ctrl-C: kill the children, so that the threads come back
                self._stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for child in crew:
                    child.close()

    def _make_shard(self, number: int, clips: tuple[SourceClip, ...], children: queue.SimpleQueue[Worker]) -> None:
        child = children.get()
        try:
            for _ in range(ATTEMPTS):
                with writing_to(self._out):
                    builder = ShardBuilder(self._out, number, self._recipe)
                try:
                    return self._fill_shard(builder, clips, child)
                except WorkerLost as error:
                    kept, bad, frames = builder.counts
                    self._count(-kept, -bad, -frames)
                    if self._stopping.is_set():
                        return None
                    logger.warning("shard %d is begun anew: %s", number, error)
            raise EnvironmentProblem(
                f"{ATTEMPTS} workers were lost while they made shard {number} of {self._out}",
                hint="look at the cluster (memory?); the same command again continues",
            )
        finally:
            children.put(child)

    def _fill_shard(self, builder: ShardBuilder, clips: tuple[SourceClip, ...], child: Worker) -> None:
        for together in _batches(clips):
            if self._stopping.is_set():
                return
            self._make_clips(builder, together, child)
        if self._stopping.is_set():  # the last clip may have died with its child: no record without it
            return
        with writing_to(self._out):
            builder.finish()

    def _make_clips(self, builder: ShardBuilder, clips: Sequence[SourceClip], child: Worker) -> None:
        first, *more = clips
        try:
            results = child.call(prepare_clips, self._deadline * len(clips), builder.job(first), *more)
        except WorkerLost:
            raise
        except Exception as error:  # what one file sets off, in any decoder, costs that file and not the run
            if self._stopping.is_set():  # its child was killed, which says nothing of the clip
                return
            if more:  # one by one they tell whose error it is
                for clip in clips:
                    self._make_clips(builder, (clip,), child)
                return
            self._refuse(builder, first, self._problem(first, error))
        else:
            for clip, result in zip(clips, results, strict=True):
                builder.add(clip, result, None if clip.label is None else self._labels[clip.label])
            self._count(kept=len(results), frames=sum(result.num_frames for result in results))

    def _refuse(self, builder: ShardBuilder, clip: SourceClip, problem: Problem) -> None:
        logger.info("%s: %s: %s", problem.path, problem.reason, problem.detail)
        builder.refuse(clip, problem)
        self._count(bad=1)

    def _problem(self, clip: SourceClip, error: Exception) -> Problem:
        """What `error` says of `clip`; raised again where it is about machine, store or settings."""
        if isinstance(error, CorruptVideo):
            return Problem(clip.id, error.reason, str(error))
        if isinstance(error, HpdmError):
            raise error
        if isinstance(error, DeadlineExceeded):
            return Problem(clip.id, "timeout", f"not decoded within {self._deadline:g} s")
        if isinstance(error, ChildDied):
            return Problem(clip.id, "crashed", f"the decoder died: {error}")
        detail = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError):
            return Problem(clip.id, "out-of-memory", detail)
        return Problem(clip.id, "unreadable" if isinstance(error, OSError) else "decode-error", detail)

    def _count(self, kept: int = 0, bad: int = 0, frames: int = 0) -> None:
        with self._lock:
            self._kept += kept
            self._bad += bad
            self._frames += frames
            done = self._kept + self._bad
            self._report(Progress(done, self._total, self._kept, self._bad, self._frames, self._resumed))


def _batches(clips: Sequence[SourceClip]) -> Iterator[Sequence[SourceClip]]:
    """What one call of a child makes: a file that may hang, alone; procedural clips, which cannot, together.

    Calls all pass through this one process: with many children, it would keep them waiting for their next small clip.
    """
    for procedural, group in groupby(clips, key=lambda clip: clip.synthetic is not None):
        if procedural:
            yield tuple(group)
        else:
            yield from ((clip,) for clip in group)


@contextmanager
def _crew(options: PrepareOptions, most: int) -> Iterator[list[Worker]]:
    """The workers that make clips, `most` at most."""
    if options.engine == "ray":
        from hpdm_core.data.ray import ray_crew

        with ray_crew(options.workers, most) as crew:
            yield crew
        return
    number = min(options.workers or available_cores(), most)
    yield [IsolatedWorker(CHILD_ENVIRONMENT, prepare_clips.__module__) for _ in range(number)]


def available_cores() -> int:
    """Cores that this process may use."""
    with suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _complete(
    out: Path, scan: Scan, recipe: Recipe, options: PrepareOptions, records: list[Record], command: str
) -> Summary:
    """Write quarantine, index and, if enough clips are good, `store.json`, which makes the store readable."""
    quarantine = [{"path": p.path, "reason": p.reason, "detail": p.detail} for p in scan.problems]
    quarantine += [problem for record in records for problem in record["quarantine"]]
    with writing_to(out):
        write_text(out / QUARANTINE, _lines(quarantine))
    clips = [clip for record in records for clip in record["clips"]]
    reasons = dict(Counter(problem["reason"] for problem in quarantine).most_common())
    _check_enough(out, len(clips), reasons, options.max_bad)
    index = _lines(clips)
    about = _describe(scan, recipe, records, command)
    about["num_quarantined"] = len(quarantine)
    about["fingerprint"] = store_fingerprint(about, index)
    with writing_to(out):
        write_text(out / INDEX, index)
        write_json(out / STORE_FILE, about, indent=1)
    num_bytes = sum(size for record in records for size in record["files"].values())
    return Summary(out, len(clips), about["num_frames"], reasons, num_bytes, about["fingerprint"])


def _describe(scan: Scan, recipe: Recipe, records: list[Record], command: str) -> dict[str, Any]:
    clips = [clip for record in records for clip in record["clips"]]
    return {
        "format": "hpdm-store",
        "schema": SCHEMA,
        "made_by": f"hpdm {__version__}",
        "command": command,
        "source": scan.kind,
        "codec": recipe.codec,
        "sizes": [list(size) for size in recipe.sizes],
        "resize": {"fit": recipe.fit, "filter": "lanczos", "pyramid": "2x2 mean"},
        "max_frames": recipe.max_frames,
        "classes": list(scan.classes),
        "num_clips": len(clips),
        "num_frames": sum(clip["num_frames"] for clip in clips),
        "shards": [record["files"] for record in records],
    }


def _check_enough(out: Path, kept: int, reasons: dict[str, int], max_bad: float | int) -> None:
    bad = sum(reasons.values())
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    where = out / QUARANTINE
    passing = sum(count for reason, count in reasons.items() if reason in RETRIED)
    again = f"; the same command tries {passing} of them again" if passing else ""
    again += ", --deadline gives them longer" if "timeout" in reasons else ""
    if kept == 0:
        raise DataError(f"no usable clip: all {bad} failed ({counts})", hint=f"reasons are in {where}{again}")
    if bad > (max_bad * (kept + bad) if isinstance(max_bad, float) else max_bad):
        raise DataError(
            f"{bad} of {kept + bad} clips could not be used ({counts})",
            hint=f"see {where}{again}; to accept them, add --max-bad {bad} (finished work is kept)",
        )


def _lines(records: list[Record]) -> str:
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
