"""What an earlier run left behind: which finished shards stand, and which are made again.

A shard stands unless one of its clips failed in a way that may pass (a time limit, a disk that was not there), or
the file of a clip that failed has changed since, or one of its own files is gone or cut short. A change under a clip
that was kept is refused: the store would mix two sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpdm_core.data.shard import Record, has_its_files, read_shard_record, source_bytes
from hpdm_core.data.sources.base import SourceClip
from hpdm_core.errors import ConfigError

RETRIED = frozenset({"timeout", "crashed", "permission", "missing", "unreadable", "out-of-memory"})


def standing_record(store: Path, number: int, clips: Sequence[SourceClip]) -> Record | None:
    """The record of shard `number` if it need not be made again. Raises ConfigError for another source."""
    record = read_shard_record(store, number)
    if record is None:
        return None
    changed = _changed(record, clips)
    kept = next((clip["id"] for clip in record["clips"] if clip["id"] in changed), None)
    if kept is not None:
        raise ConfigError(
            f"{store} was begun from other files: {kept} is not the size it was",
            hint="give another --out, or delete that store first",
        )
    passing = any(problem["reason"] in RETRIED for problem in record["quarantine"])
    return None if changed or passing or not has_its_files(store, record) else record


def _changed(record: Record, clips: Sequence[SourceClip]) -> set[str]:
    """Ids of the clips whose files are there and do not have the size that was recorded."""
    recorded = record.get("source_bytes", {})
    found = {clip.id: source_bytes(clip) for clip in clips}
    return {name for name, size in found.items() if size is not None and size != recorded.get(name, size)}
