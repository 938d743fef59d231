"""One process trains a run at a time."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpdm_core.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def claimed_run(run: Path) -> Iterator[None]:
    """Hold the folder `run`, which exists; ConfigError where another process holds it.

    Two would remove each other's half-written checkpoints and cut each other's log.
    """
    with (run / LOCK_FILE).open("ab") as file:
        try:
            import fcntl

            # Not flock: workers forked from here would share that lock, and outlive a killed trainer by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"another process is training {run}", hint="wait for it or stop it, or give another --out"
                ) from None
            logger.warning("%s: this file system has no locks; do not train one run twice at once", run)
        yield
