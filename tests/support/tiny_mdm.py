"""A matryoshka model of a few ten thousand weights, and what tests feed it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hpdm_core.data.window import Batch
from hpdm_core.families.mdm.config import MdmModel, MdmSample
from hpdm_core.families.mdm.family import MdmFamily
from hpdm_core.rng import BatchStreams, numpy_stream
from hpdm_core.sampling.engine import run_plan
from hpdm_core.sampling.stage import Request

FRAMES, HEIGHT, WIDTH = 4, 16, 8
IMAGE = {"size": (8, 4), "channels": (8, 16), "blocks": (1, 1), "attention": (0, 1), "feed_forward": True}
MIDDLE = {
    "frames": FRAMES, "size": (8, 4), "channels": (8, 8, 16), "blocks": (1, 1, 1), "shrink": "time",
    "time_attention": (1, 0, 1),
}  # fmt: skip
OUTER = {"frames": FRAMES, "size": (HEIGHT, WIDTH), "channels": (8, 16), "blocks": (1, 1)}
NEST = (IMAGE, MIDDLE, OUTER)
EXTENTS = ((1, 8, 4), (FRAMES, 8, 4), (FRAMES, HEIGHT, WIDTH))


def tiny_model(levels=NEST, **changes):
    """The model section: frames that are not square, four classes, every mechanism on."""
    section = {
        "levels": levels,
        "embedding_dim": 16,
        "condition_dim": 8,
        "condition": {"kind": "class", "num_classes": 4, "drop": 0.1},
    }
    return MdmModel(**{**section, **changes})


def tiny_family(seed=0, *, lively=True, **changes):
    """A family with reproducible weights; `lively` fills those that start at zero, so that effects show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        family = MdmFamily(tiny_model(**changes))
        if lively:
            enliven(family.denoiser)
    return family.eval()


@torch.no_grad()
def enliven(module, std=0.2):
    """Fill every parameter of `module` that is zero."""
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def resolutions(video_BCTHW):
    """The three levels of a clip, innermost first: frame 0 small, all frames small, all frames."""
    small = F.avg_pool3d(video_BCTHW, (1, 2, 2))
    return [small[:, :, :1], small, video_BCTHW]


def random_batch(positions, seed=0, num_levels=3):
    """A training batch; row contents follow from the position alone."""
    rows, labels = [], []
    for position in positions:
        rng = numpy_stream(seed, "test-batch", position)
        coarse = torch.from_numpy(rng.uniform(-1, 1, (3, FRAMES, 4, 2)).astype("float32"))
        rows.append(F.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear"))
        labels.append(int(rng.integers(4)))
    videos = {f"level{k}": x for k, x in enumerate(resolutions(torch.stack(rows))[:num_levels])}
    return Batch(videos, {}, torch.tensor(labels), [""] * len(positions), list(positions))


def losses(family, positions, *, phase="full", seed=0):
    """The family's losses on the batch of these positions."""
    num_levels = family.view(phase).extents
    batch = random_batch(positions, num_levels=len(num_levels))
    return family.losses(phase, batch, BatchStreams(seed, batch.positions))


def inputs(rows=2, seed=0, extents=EXTENTS):
    """Random network inputs, innermost first."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 3, *extent, generator=generator) for extent in extents]


def predict(family, z, labels=None, noise=0.3):
    """The nested network's predictions at one noise level."""
    batch = len(z[0])
    condition = family.wanted(Request(tuple(range(batch)), None if labels is None else tuple(labels)))
    return family.denoiser(z, torch.full((batch,), noise), condition)


def sample(family, seeds, labels=None, *, request=None, **options):
    """Videos [B, 3, T, H, W] from a plan with few steps."""
    options = MdmSample(**{"steps": (3,), **options})
    labels = None if labels is None else tuple(labels)
    plan = family.plan(Request(tuple(seeds), labels, **(request or {})), options)
    return run_plan(plan, seeds, "cpu")
