"""Results in files that appear whole or not at all; `-` as the file of `--json` is standard output."""

from __future__ import annotations

from pathlib import Path

from hpdm_cli import console
from hpdm_core.data.disk import appearing, require_writable

STDOUT = Path("-")


def to_stdout(json_file: Path | None) -> bool:
    """Whether JSON goes to standard output, where it stands alone: the text for people is then left out."""
    return json_file == STDOUT


def require_json_file(json_file: Path | None) -> None:
    """Raise ConfigError, before the work, unless the file of `--json` can be written."""
    if json_file is not None and not to_stdout(json_file):
        require_writable(json_file, "--json")


def write_result(file: Path, text: str) -> None:
    """Write a text to a file. Raises OSError naming `file`, and leaves what stood there."""
    with appearing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json_text(json_file: Path, text: str) -> None:
    """Write the JSON of `--json`, or print it."""
    if to_stdout(json_file):
        console.print_result(text)
    else:
        write_result(json_file, text + "\n")
