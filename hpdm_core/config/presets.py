"""Presets: the YAML files that ship with the package, found by name.

A wheel carries them as package data; an editable install reads the repository's `presets/` folder. Files
at the top of that folder are run presets; sub-folders (evaluation protocols) belong to others.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from hpdm_core.config.document import read_document
from hpdm_core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def presets_root() -> Path:
    """The folder that holds the presets of this installation."""
    for root in (_PACKAGE / "_presets", _PACKAGE.parent / "presets"):
        if root.is_dir():
            return root
    raise ConfigError("this installation holds no presets", hint="install the package again")


def list_presets() -> list[str]:
    """The names of all run presets, sorted."""
    return sorted(path.stem for path in presets_root().glob("*.yaml") if not path.stem.startswith("_"))


def preset_path(name: str) -> Path:
    """The file of preset `name`; ConfigError names the nearest preset if there is none."""
    path = presets_root() / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        near = get_close_matches(name, list_presets(), n=1, cutoff=0.5)
        question = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"no preset is named {name!r}{question}",
            hint="see `hpdm presets list`, or give the path of a YAML file",
        )
    return path


def read_preset(name: str) -> str:
    """The text of preset `name`, comments included."""
    return preset_path(name).read_text(encoding="utf-8")


def preset_description(name: str) -> str:
    """The `description` line of preset `name`, empty if it has none."""
    return str(read_document(preset_path(name)).data.get("description") or "").strip()
