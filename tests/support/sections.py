"""The config sections of a family that has no network, and a config file that fits them."""

from __future__ import annotations

from hpdm_core.config.schema import ConditionSection, Count, Extent, ModelSection, SampleSection, Section
from hpdm_core.errors import ConfigError


class Block(Section):
    width: Count
    heads: Count = 4


class PaperModel(ModelSection):
    patch: Extent = (8, 32, 32)
    condition: ConditionSection = ConditionSection()
    widths: tuple[int, ...] = (1, 2)
    blocks: tuple[Block, ...] = ()
    gain: float = 1.0


class PaperSample(SampleSection):
    steps: int | tuple[int, ...] = 10
    options: dict[str, float] = {}  # noqa: RUF012  (pydantic copies defaults)


def paper_sections(family: str) -> tuple[type[ModelSection], type[SampleSection]]:
    """What a family registry would answer: one family, named `paper`."""
    if family != "paper":
        raise ConfigError(f"unknown family {family!r}", hint="known families: paper")
    return PaperModel, PaperSample


GOOD = """\
family: paper
description: exists on paper
model:
  patch: [16, 64, 64]
  gain: 2
data:
  dataset: clips
train:
  max_steps: 10
  precision: fp32
  optimizer:
    lr: 1.0e-6
sample: {}
"""
