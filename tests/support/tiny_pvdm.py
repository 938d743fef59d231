"""A projected-latent model of a few ten thousand weights, and what tests feed it."""

import torch

from hpdm_core.data.window import Batch
from hpdm_core.families.pvdm.config import PvdmModel, PvdmSample
from hpdm_core.families.pvdm.family import PvdmFamily
from hpdm_core.families.pvdm.views import CLIP, PREVIOUS
from hpdm_core.rng import numpy_stream
from hpdm_core.sampling.engine import run_plan
from hpdm_core.sampling.stage import Request

VIDEO, PATCH = (4, 16, 24), 4
GRID = (4, 4, 6)


def tiny_model(**changes):
    """The model section: frames that are not square, four classes, every mechanism on."""
    section = {
        "video": VIDEO,
        "patch": PATCH,
        "latent_channels": 3,
        "autoencoder": {
            "width": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_ratio": 2,
            "projector_depth": 1, "projector_heads": 2, "projector_head_dim": 4, "projector_mlp": 16,
        },
        "denoiser": {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "heads": 2},
        "critic": {"width": 4, "layers": 1},
        "condition": {"kind": "class", "num_classes": 4, "drop": 0.1},
    }  # fmt: skip
    return PvdmModel(**{**section, **changes})


def tiny_family(seed=0, *, lively=True, **changes):
    """A family with reproducible weights; `lively` fills those that start at zero, so that effects show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        family = PvdmFamily(tiny_model(**changes))
        if lively:
            with torch.no_grad():
                for parameter in family.denoiser.parameters():
                    if not parameter.any():
                        parameter.normal_(std=0.2)
    return family.eval()


def random_video(rows=2, seed=0, frames=VIDEO[0]):
    """[B, 3, T, H, W] in [-1, 1]."""
    return torch.rand(rows, 3, frames, *VIDEO[1:], generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_latents(family, rows=2, seed=0):
    """[B, C, N] in [-1, 1]."""
    shape = rows, family.config.latent_channels, family.config.planes.num_cells
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_batch(positions, seed=0, conditional=None, video=VIDEO):
    """A training batch for every phase; row contents follow from the position alone."""
    clips, labels, flags = {CLIP: [], PREVIOUS: []}, [], []
    for position in positions:
        rng = numpy_stream(seed, "test-batch", position)
        for rows in clips.values():
            coarse = torch.from_numpy(rng.uniform(-1, 1, (3, video[0], 2, 2)).astype("float32"))
            rows.append(torch.nn.functional.interpolate(coarse, video[1:], mode="bilinear"))
        labels.append(int(rng.integers(4)))
        flags.append(int(rng.integers(2)))
    videos = {name: torch.stack(rows) for name, rows in clips.items()}
    flags = flags if conditional is None else list(conditional)
    return Batch(
        videos, {"conditional": torch.tensor(flags)}, torch.tensor(labels), [""] * len(positions), list(positions)
    )


def sample(family, seeds, labels=None, *, request=None, on_progress=None, **options):
    """Videos [B, 3, T, H, W] from a plan with few steps."""
    options = PvdmSample(**{"steps": (3, 2), "chunk": 2, **options})
    labels = None if labels is None else tuple(labels)
    plan = family.plan(Request(tuple(seeds), labels, **(request or {})), options)
    return run_plan(plan, seeds, "cpu", on_progress)
