"""Option types that several commands share, and the parsers behind them.

A parser takes the text after an option and returns a value; ConfigError says what it wanted, with an example.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hpdm_core.errors import ConfigError

MAX_SEEDS = 10_000_000
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_size(text: str) -> tuple[int, int]:
    """`288x512` as (height, width) = (288, 512); a single number is a square."""
    match = re.fullmatch(r"\s*([1-9]\d*)(?:\s*[x×X]\s*([1-9]\d*))?\s*", text)
    if not match:
        raise ConfigError(f"cannot read size {text!r}", hint="write height x width, for example 288x512")
    height = int(match[1])
    return height, int(match[2] or height)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3`, `0-63` or `1,5,8-9` as a tuple of seeds in the order written; a repeated seed is an error.

    Ten million at most: a slip of the hand is not to fill the memory.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise ConfigError(f"cannot read seeds {text!r}", hint="for example 3, or 0-63, or 1,5,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"seeds {part.strip()} run backwards", hint=f"write {last}-{first}")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise ConfigError(f"seeds {text!r} are too many", hint=f"one command takes {MAX_SEEDS:,} at most")
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {text!r} name one seed twice", hint="a seed makes one video; name it once")
    return tuple(seeds)


def parse_duration(text: str) -> float:
    """`2h`, `11h50m`, `90s` or `1d2h` as seconds; a bare number is seconds."""
    compact = re.sub(r"\s+", "", text.lower())
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        seconds = float(compact)
    elif re.fullmatch(r"(\d+(\.\d+)?d)?(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?", compact) and compact:
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"([\d.]+)([dhms])", compact))
    else:
        raise ConfigError(f"cannot read duration {text!r}", hint="for example 2h, 11h50m or 90s")
    if seconds <= 0:
        raise ConfigError(f"duration {text!r} is zero", hint="for example 2h, 11h50m or 90s")
    return seconds


def parse_tolerance(text: str) -> float | int:
    """`1%` as the share 0.01 (a float), `25` as the count 25 (an int)."""
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if share and float(share[1]) <= 100:
        return float(share[1]) / 100
    if re.fullmatch(r"\s*\d+\s*", text):
        return int(text)
    raise ConfigError(f"cannot read tolerance {text!r}", hint="give a share such as 1% or a count such as 25")


def parse_share(text: str) -> tuple[int, int]:
    """`3/8`, the third of eight shares, as (3, 8)."""
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"cannot read shards {text!r}", hint="for example 3/8, the third of eight shares: 1/8 to 8/8")
    return int(match[1]), int(match[2])


def require_finite(options: Mapping[str, float | None]) -> None:
    """Raise ConfigError for an option that is `nan` or infinite, which every comparison would pass over."""
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}", hint=f"give a finite number, for example {name} 80")


def parse_sample_keys(overrides: list[str]) -> dict[str, Any]:
    """`--set KEY=VALUE` as keys of the sample section; `sample.` may stand before the key."""
    from hpdm_core.config.document import parse_value

    found: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"cannot read --set {text}", hint="write --set key=value, e.g. --set churn=0")
        found[key.removeprefix("sample.")] = parse_value(value)
    return found


Preset = Annotated[
    str, typer.Option("--preset", metavar="NAME|FILE", help="A preset (`hpdm presets list`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config; repeatable."),
]
Store = Annotated[Path | None, typer.Option("--data", metavar="STORE", help="A store from `hpdm prepare-data`.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Where results go.")]
Res = Annotated[str | None, typer.Option("--res", metavar="HxW", help="Height and width, e.g. 288x512.")]
Frames = Annotated[int | None, typer.Option("--frames", metavar="T", min=1, help="Number of frames.")]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="A-B", help="Seeds, e.g. 0-63 or 1,5,9.")]
TimeLimit = Annotated[
    str | None,
    typer.Option("--time-limit", metavar="2h", help="Stop cleanly after this long, with exit code 75."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:1; a GPU if there is one."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=0, help="Number of processes; one per core if not given.")
]
Nproc = Annotated[int, typer.Option("--nproc", metavar="N", min=1, help="Processes, one per GPU.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - prints it in place of the text."),
]
