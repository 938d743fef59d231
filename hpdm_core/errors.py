"""Every error that users can cause or meet, as one tree.

    HpdmError
    ├── ConfigError              exit 2   a preset, config file, override or argument is wrong
    ├── EnvironmentProblem       exit 2   a package or device that the command needs is absent
    ├── DataError                exit 3   input videos or a prepared store
    │   ├── CorruptVideo                  one file cannot be decoded
    │   └── StoreMismatch                 a store lacks what the model or the metric reads
    ├── CheckpointError          exit 4   a run or weights file
    │   ├── NoCheckpoint                  there is none
    │   └── IncompatibleCheckpoint        there is one, and it does not fit
    ├── WeightsMissing           exit 5   a metric's network needs a file that the user must supply
    ├── ThresholdNotMet          exit 6   `eval-fvd --max-fvd` and friends
    ├── NumericsError            exit 1   training diverged
    ├── StoppedOnRequest         exit 75  a signal or --time-limit; the same command continues
    └── RankLost                 exit 75  one process of many: another is gone; the same command continues

A message says what happened and where; `hint` says what to do. The command line prints both on
their own lines and exits with `exit_code`; `--traceback` shows the rest.
"""

from __future__ import annotations


class HpdmError(Exception):
    """Base of all errors above; `hint` is the remedy, one sentence."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(HpdmError):
    """A preset, config file, override or argument is wrong."""

    exit_code = 2


class EnvironmentProblem(HpdmError):
    """A package or device that the command needs is absent or broken."""

    exit_code = 2


class DataError(HpdmError):
    """Input videos or a prepared store cannot be used."""

    exit_code = 3


class CorruptVideo(DataError):
    """One source file cannot be decoded; `reason` is a short word for counting."""

    def __init__(self, message: str, *, reason: str = "corrupt", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class StoreMismatch(DataError):
    """A prepared store lacks the frame size, length, labels or captions that were asked of it."""


class CheckpointError(HpdmError):
    """A run directory or weights file cannot be used."""

    exit_code = 4


class NoCheckpoint(CheckpointError):
    """There is no checkpoint where one was expected."""


class IncompatibleCheckpoint(CheckpointError):
    """A checkpoint exists and does not fit what was asked of it."""


class WeightsMissing(HpdmError):
    """A feature network's weights must be supplied by the user."""

    exit_code = 5


class ThresholdNotMet(HpdmError):
    """A metric missed the threshold given on the command line."""

    exit_code = 6


class NumericsError(HpdmError):
    """Training met non-finite numbers that it could not step over, or sampling made them."""


class StoppedOnRequest(HpdmError):
    """A signal or a time limit ended the run after a clean checkpoint; the same command continues."""

    exit_code = 75


class RankLost(HpdmError):
    """Another process of a distributed run is gone. `--nproc` answers with that one's exit code instead."""

    exit_code = 75
