"""Stand-ins for a command's function, one for each way in which a command can end."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hpdm_core.errors import DataError, StoppedOnRequest


def bad_data() -> None:
    """Meet bad data."""
    raise DataError("store [val] is empty", hint="run `hpdm prepare-data`")


def stopped() -> None:
    """Be stopped."""
    raise StoppedOnRequest("step 7 is saved")


def bug() -> None:
    """Have a bug."""
    raise RuntimeError("unforeseen")


def interrupted() -> None:
    """Meet ctrl-C."""
    raise KeyboardInterrupt


def echo(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Print the words."""
    print(*(words or []))


def unprintable() -> None:
    """Print what ASCII lacks."""
    print("σ → naïve")
    print("σ", file=sys.stderr)
