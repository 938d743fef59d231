"""Tiny models of one, two and three levels over the same patches, and a store for them."""

from pathlib import Path

from hpdm_core.data.clip import Recipe
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.sources.base import SourceOptions
from hpdm_core.data.sources.detect import scan_source

ONE = {"video": [2, 8, 8], "levels_per_block": [1, 1, 1, 1]}
TWO = {"video": [4, 16, 16], "levels_per_block": [1, 1, 2, 2]}
THREE = {"video": [8, 32, 32], "levels_per_block": [1, 2, 2, 3]}


def preset_file(folder, name, model, text=""):
    """A YAML preset over the smoke preset; `text` holds further sections."""
    path = Path(folder) / f"{name}.yaml"
    keys = "".join(f"  {key}: {value}\n" for key, value in model.items())
    path.write_text(f"extends: hpdm-smoke\nmodel:\n{keys}{text}", encoding="utf-8")
    return path


def make_store(path):
    """Twelve procedural clips of 8 frames at 32x32, 16x16 and 8x8, with classes."""
    scan = scan_source(SourceOptions(kind="synthetic", path=None, num_clips=12, num_frames=8))
    prepare_store(scan, path, Recipe(sizes=((32, 32), (16, 16), (8, 8))), PrepareOptions(workers=1))
    return path
