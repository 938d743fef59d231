"""The model in the box: a small trained text-to-video model that comes with the package, where this version has one.

Nothing here loads torch: help texts ask whether it is there.
"""

from __future__ import annotations

from pathlib import Path

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "models" / "shapes-288x512.safetensors"
"""Its weights; beside them lies its card, with the suffix .md."""

EXAMPLE_PROMPTS = (
    "a large red star bounces over a tiled grey background",
    "three white circles slide up over a wavy navy background",
    "a large blue ring slides right over a gradient sand background",
    "two yellow squares orbit clockwise over a cloudy plum background",
)
"""Prompts that it understands."""


def has_shipped_model() -> bool:
    """Whether this version comes with one."""
    return SHIPPED_MODEL.is_file()


def is_shipped(path: Path) -> bool:
    """Whether `path` is the file of the model in the box."""
    return has_shipped_model() and path.exists() and path.samefile(SHIPPED_MODEL)
