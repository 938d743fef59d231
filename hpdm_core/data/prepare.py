"""`prepare-data`: from a scan of sources to a store, in parallel, interruptible, with bad files set aside.

Clips are divided into shards in the order of the scan. Shards are independent pieces of work: each is made by one
thread that drives one killable child process, so the bytes of a store do not depend on the number of workers
or on interruptions. A finished shard is rewritten only where a clip failed that may succeed now (`resume`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpdm_core.data.backends import CHILD_ENVIRONMENT, available_backends
from hpdm_core.data.clip import Recipe, prepare_clip
from hpdm_core.data.disk import writing_to
from hpdm_core.data.isolate import ChildDied, DeadlineExceeded, IsolatedWorker
from hpdm_core.data.resume import RETRIED, standing_record
from hpdm_core.data.shard import (
    CLIPS_PER_SHARD,
    SHARDS,
    Record,
    ShardBuilder,
    read_json,
    read_shard_record,
    write_json,
    write_text,
)
from hpdm_core.data.sources.base import Problem, Scan, SourceClip
from hpdm_core.data.store import INDEX, QUARANTINE, SCHEMA, STORE_FILE, store_fingerprint
from hpdm_core.errors import ConfigError, CorruptVideo, DataError, HpdmError
from hpdm_core.version import __version__

logger = logging.getLogger(__name__)

PLAN = "plan.json"
REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class PrepareOptions:
    """How to run. Nothing here changes the bytes of the store.

    `max_bad` clips may fail: an int is a number, a float a share of all. `deadline` is seconds per clip.
    `workers: None` takes all cores.
    """

    max_bad: float | int = 0.01
    deadline: float = 120.0
    workers: int | None = None


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
    store as what made it. Raises ConfigError if `out` holds something else, DataError if `out` cannot be written, or,
    after all clips were tried, if more than `options.max_bad` failed or none is left.
    """
    available_backends(recipe.backends)
    shards = [scan.clips[i : i + CLIPS_PER_SHARD] for i in range(0, len(scan.clips), CLIPS_PER_SHARD)]
    with _claimed(out, _plan(scan, recipe)):
        work = _Work(out, scan, recipe, options, on_progress)
        work.run(shards)
        records = [record for i in range(len(shards)) if (record := read_shard_record(out, i)) is not None]
        return _complete(out, scan, recipe, options, records, command)


def _plan(scan: Scan, recipe: Recipe) -> Record:
    """What decides the bytes of the store, as plain data."""
    names = [[c.id, c.label, c.captions, c.group, len(c.paths), c.fps] for c in scan.clips]
    specs = [asdict(c.synthetic) for c in scan.clips if c.synthetic]
    digest = hashlib.sha256(json.dumps([names, specs, scan.classes]).encode()).hexdigest()
    plain = json.loads(json.dumps(asdict(recipe)))
    return {"schema": SCHEMA, "recipe": plain, "num_clips": len(scan.clips), "clips_sha256": digest}


@contextmanager
def _claimed(out: Path, plan: Record) -> Iterator[None]:
    """Hold the store for this process; refuse a folder that is not this plan's store."""
    with writing_to(out):
        _begin(out, plan)
        file = (out / PLAN).open("r+b")
    with file:
        _lock(file.fileno(), out)
        yield


def _begin(out: Path, plan: Record) -> None:
    """Make the folder with its plan, or compare the plan that is there."""
    path = out / PLAN
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", hint="--out names a folder")
    if path.is_file():
        found = read_json(path)
        changed = [key for key in plan if found.get(key) != plan[key]]
        if changed:
            raise ConfigError(
                f"{out} was begun with other settings: {_difference(found, plan, changed[0])}",
                hint="give another --out, or delete that store first",
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no store", hint="give another --out")
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_json(path, plan, indent=1)


def _difference(found: Record, plan: Record, key: str) -> str:
    if key == "clips_sha256":
        return "the list of clips has changed"
    if key != "recipe":
        return f"{key} was {found.get(key)}, is {plan[key]}"
    old, new = found.get(key, {}), plan[key]
    return ", ".join(f"{k} was {old.get(k)}, is {new[k]}" for k in new if old.get(k) != new[k])


def _lock(descriptor: int, out: Path) -> None:
    """One preparation per store at a time, where the system has file locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another process is preparing {out}", hint="wait for it, or stop it") from None
    except OSError:  # a file system without locks
        logger.warning("%s: this file system has no locks; do not prepare one store twice at once", out)


class _Work:
    """The running preparation: threads, children, and the count of what is done."""

    def __init__(
        self, out: Path, scan: Scan, recipe: Recipe, options: PrepareOptions, on_progress: Callable[[Progress], None]
    ) -> None:
        self._out = out
        self._recipe = recipe
        self._deadline = options.deadline
        self._workers = options.workers or available_cores()
        self._labels = {name: i for i, name in enumerate(scan.classes)}
        self._report = on_progress
        self._total = len(scan.clips) + len(scan.problems)
        self._kept = self._frames = self._resumed = 0
        self._bad = len(scan.problems)
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def run(self, shards: list[tuple[SourceClip, ...]]) -> None:
        """Make every shard that is not finished."""
        pending = []
        for number, clips in enumerate(shards):
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
        children: queue.SimpleQueue[IsolatedWorker] = queue.SimpleQueue()
        crew = [
            IsolatedWorker(CHILD_ENVIRONMENT, prepare_clip.__module__) for _ in range(min(self._workers, len(pending)))
        ]
        for child in crew:
            children.put(child)
        if crew:
            self._share_out(pending, crew, children)

    def _share_out(
        self,
        pending: list[tuple[int, tuple[SourceClip, ...]]],
        crew: list[IsolatedWorker],
        children: queue.SimpleQueue[IsolatedWorker],
    ) -> None:
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

    def _make_shard(
        self, number: int, clips: tuple[SourceClip, ...], children: queue.SimpleQueue[IsolatedWorker]
    ) -> None:
        child = children.get()
        try:
            with writing_to(self._out):
                builder = ShardBuilder(self._out, number, self._recipe)
            for clip in clips:
                if self._stopping.is_set():
                    return
                self._make_clip(builder, clip, child)
            if self._stopping.is_set():  # the last clip may have died with its child: no record without it
                return
            with writing_to(self._out):
                builder.finish()
        finally:
            children.put(child)

    def _make_clip(self, builder: ShardBuilder, clip: SourceClip, child: IsolatedWorker) -> None:
        try:
            result = child.call(prepare_clip, self._deadline, builder.job(clip))
        except Exception as error:  # what one file sets off, in any decoder, costs that file and not the run
            problem = self._problem(clip, error)
        else:
            builder.add(clip, result, None if clip.label is None else self._labels[clip.label])
            self._count(kept=1, frames=result.num_frames)
            return
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
