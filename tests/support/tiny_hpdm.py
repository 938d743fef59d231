"""A hierarchical model of a few ten thousand weights, and what tests feed it."""

import torch

from hpdm_core.data.window import Batch
from hpdm_core.families.hpdm.config import HpdmModel, HpdmSample
from hpdm_core.families.hpdm.family import HpdmFamily
from hpdm_core.pyramid.extract import level_name
from hpdm_core.rng import numpy_stream
from hpdm_core.sampling.engine import run_plan
from hpdm_core.sampling.stage import Request

VIDEO, PATCH, TOKEN = (8, 32, 32), (2, 8, 8), (1, 2, 2)
LOAD = (1, 1, 2, 2, 3, 3)


def tiny_model(**changes):
    """The model section: three levels, the paper's load per block, four classes."""
    section = {
        "video": VIDEO,
        "patch": PATCH,
        "token": TOKEN,
        "token_dim": 24,
        "latent_dim": 16,
        "num_latents": 6,
        "levels_per_block": LOAD,
        "latent_layers": 1,
        "head_dim": 8,
        "condition": {"kind": "class", "num_classes": 4, "drop": 0.1},
    }
    return HpdmModel(**{**section, **changes})


def tiny_family(seed=0, *, lively=True, **changes):
    """A family with reproducible weights; `lively` raises those that start near zero, so that effects show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        family = HpdmFamily(tiny_model(**changes))
        if lively:
            with torch.no_grad():
                net = family.denoiser
                net.head.detokenize.weight.normal_(std=0.2)
                for parameter in (net.stem.position, net.stem.level, net.latent_start):
                    parameter.normal_(std=0.5)
                if family.config.self_conditioning > 0:
                    net.latent_norm.weight.normal_(std=0.5)
    return family.eval()


def nested_offsets(pyramid, rows, seed=0):
    """int64 [B, L, 3]."""
    drawn = [pyramid.draw_offsets(numpy_stream(seed, "test-offsets", row)) for row in range(rows)]
    return torch.stack([torch.from_numpy(offsets) for offsets in drawn])


def random_inputs(family, rows=2, seed=0):
    """(z [L, B, C, T, H, W], noise [L, B], offsets [B, L, 3], condition) for the denoiser's forward."""
    generator = torch.Generator().manual_seed(seed)
    levels = family.pyramid.num_levels
    z = torch.randn(levels, rows, 3, *family.config.patch, generator=generator)
    noise = torch.randn(levels, rows, generator=generator) * 0.3
    condition = None if family.labels is None else family.labels(torch.arange(rows) % family.labels.num_classes)
    return z, noise, nested_offsets(family.pyramid, rows, seed), condition


def random_batch(family, positions, seed=0):
    """A training batch of smooth random patches; row contents follow from the position alone."""
    levels = range(family.pyramid.num_levels)
    videos = {level_name(level): [] for level in levels}
    offsets, labels = [], []
    for position in positions:
        generator = torch.Generator().manual_seed(1000 * seed + position)
        for level in levels:
            videos[level_name(level)].append(torch.rand(3, *family.config.patch, generator=generator) * 2 - 1)
        rng = numpy_stream(seed, "test-batch", position)
        offsets.append(torch.from_numpy(family.pyramid.draw_offsets(rng)))
        labels.append(int(rng.integers(4)))
    stacked = {name: torch.stack(rows) for name, rows in videos.items()}
    labels_B = torch.tensor(labels)
    return Batch(stacked, {"offsets": torch.stack(offsets)}, labels_B, [""] * len(positions), list(positions))


def sample(family, seeds, labels=None, *, request=None, on_progress=None, **options):
    """Videos [B, 3, T, H, W] from a plan with few steps."""
    options = HpdmSample(**{"steps": (3, 2, 2), **options})
    labels = None if labels is None else tuple(labels)
    plan = family.plan(Request(tuple(seeds), labels, **(request or {})), options)
    return run_plan(plan, seeds, "cpu", on_progress)
