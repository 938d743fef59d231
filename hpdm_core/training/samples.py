"""Samples while training: the same few seeds every time, so that one can watch them change."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.conditioning.clip import find_tower_file
from hpdm_core.config.load import plain_config
from hpdm_core.config.schema import FrozenText, RunConfig
from hpdm_core.data.write import tile_videos, write_contact_sheet, write_gif, write_mp4
from hpdm_core.families.base import Family
from hpdm_core.families.generate import iterate_samples
from hpdm_core.families.weights import LoadedModel, WeightsHeader
from hpdm_core.training.conditions import text_condition
from hpdm_core.training.distributed import World
from hpdm_core.training.hooks import SampleFn
from hpdm_core.training.source import Source

FPS = 25.0
MAX_COLUMNS = 4


def grid_sampler(config: RunConfig, source: Source, world: World) -> SampleFn:
    """A function that writes `grid.mp4`, `grid.gif` and `grid.png` of seeds 0 to `train.sample_seeds` - 1."""
    header = WeightsHeader(config=plain_config(config), classes=list(source.classes))
    text = text_condition(config)
    if isinstance(text, FrozenText):
        find_tower_file(text)  # now, rather than after hours of training
    every = dict.fromkeys(source.captions()) if text is not None else ()
    prompts = list(itertools.islice(every, config.train.sample_seeds))
    seeds = range(config.train.sample_seeds)

    def write(family: Family, folder: Path) -> None:
        model = LoadedModel(family, config, header, folder, "")
        # Training has compiled the blocks already if it was asked to; sampling leaves them as they are. Nor does it
        # capture graphs: they would keep memory that training needs, and sharded weights are gathered in every call.
        plain: dict[str, Any] = {"compile": False, "graphs": False}
        made = list(iterate_samples(model, seeds, prompts=prompts, batch=len(seeds), device=world.device, **plain))
        if not world.main:
            return
        videos = [item.video for item in made]
        grid = tile_videos(np.stack(videos), columns=min(len(videos), MAX_COLUMNS))
        told = [item.class_name or item.prompt for item in made]
        facts = {"seeds": list(seeds), "classes": told}
        write_mp4(folder / "grid.mp4", grid, FPS, facts)
        write_gif(folder / "grid.gif", grid, FPS, facts)
        titles = [f"seed {item.seed} {words}".strip() for item, words in zip(made, told, strict=True)]
        write_contact_sheet(folder / "grid.png", videos, titles, facts)

    return write
