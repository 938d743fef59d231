"""Samples while training."""

import torch

from hpdm_core.families.registry import load_run_config
from hpdm_core.training import samples
from hpdm_core.training.distributed import World
from tests.support.tiny_hpdm import tiny_family


class NoText:
    """A source as far as sampling looks at it."""

    classes = ("a", "b")

    def captions(self):
        return iter(())


def test_they_neither_compile_nor_capture_whatever_the_preset_says(tmp_path, monkeypatch):
    """Graphs would keep memory beside training's, and cannot hold the gathering of sharded weights."""
    asked = {}

    def made(model, seeds, **options):
        asked.update(options, config=model.config.sample)
        return iter(())

    monkeypatch.setattr(samples, "iterate_samples", made)
    config = load_run_config("hpdm-smoke", ("sample.compile=true", "sample.graphs=true", "train.sample_seeds=2"))
    write = samples.grid_sampler(config, NoText(), World(torch.device("cpu"), rank=1))
    write(tiny_family(), tmp_path)
    assert asked["config"].compile
    assert asked["config"].graphs
    assert (asked["compile"], asked["graphs"], asked["batch"]) == (False, False, 2)
