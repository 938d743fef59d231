"""Name to family: the only place where a new family is added, one line each.

Classes are named as text and imported when asked for, so that listing presets loads no network code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hpdm_core.config.load import load_config
from hpdm_core.config.schema import ModelSection, RunConfig, SampleSection
from hpdm_core.errors import ConfigError
from hpdm_core.families.base import Family

FAMILIES = {
    "hpdm": "hpdm_core.families.hpdm.family:HpdmFamily",
    "mdm": "hpdm_core.families.mdm.family:MdmFamily",
    "pvdm": "hpdm_core.families.pvdm.family:PvdmFamily",
}


def family_class(name: str) -> type[Family]:
    """The class registered under `name`; ConfigError names the known ones."""
    if name not in FAMILIES:
        raise ConfigError(f"unknown family {name!r}", hint=f"known families: {', '.join(sorted(FAMILIES))}")
    module, _, cls = FAMILIES[name].partition(":")
    return getattr(import_module(module), cls)


def family_sections(name: str) -> tuple[type[ModelSection], type[SampleSection]]:
    """The classes of the `model` and `sample` sections of family `name`."""
    cls = family_class(name)
    return cls.model_section, cls.sample_section


def load_run_config(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> RunConfig:
    """Read a preset by name or a YAML file by path, apply `a.b=c` overrides, validate everything.

    frames, size: set the model to videos of these (`Family.target_settings`); None keeps what the preset says.
    """

    def target(family: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
        return family_class(family).target_settings(model, frames, size)

    return load_config(source, overrides, family_sections, None if frames is None and size is None else target)


def build_family(config: RunConfig) -> Family:
    """The family of `config`, weights freshly initialised on the default device."""
    return family_class(config.family)(config.model)  # type: ignore[call-arg]
