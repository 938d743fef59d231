"""Samples and real clips at every pyramid level, and a Fréchet distance between them on seeded random features.

The distance (rFD) is for comparing rows of one table: a random I3D, projected to 64 numbers by a seeded matrix so
that a few hundred clips estimate a covariance. It is not FVD and is comparable with nothing else.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hpdm_core.data.store import VideoStore
from hpdm_core.data.window import Window
from hpdm_core.errors import ConfigError
from hpdm_core.families.generate import labels_of, sample_options
from hpdm_core.families.hpdm.family import HpdmFamily
from hpdm_core.families.weights import LoadedModel
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.frechet import frechet_from_features
from hpdm_core.metrics.protocol import DetectorSection
from hpdm_core.nn.precision import autocast, matmul_precision
from hpdm_core.pyramid.geometry import Pyramid
from hpdm_core.rng import numpy_stream
from hpdm_core.sampling.engine import run_stage
from hpdm_core.sampling.noise import Noise
from hpdm_core.sampling.stage import Request, Stage, State
from hpdm_core.video import to_uint8

WIDTH = 64
FRAMES = 16
GPU_CHUNK = 64
"""Tiles of a network call on a GPU, which a call of one leaves idle."""


def hpdm_of(model: LoadedModel) -> HpdmFamily:
    """The model's family, which must be the one with a pyramid and a stage for each of its levels."""
    if not isinstance(model.family, HpdmFamily):
        raise ConfigError(f"{model.path} is a {model.family.name} model", hint="this benchmark needs an HPDM model")
    return model.family


def level_chunks(device: torch.device, batch: int) -> dict[str, list[int]]:
    """The option `chunk` for `batch` videos at once: on a GPU no call of level 0 is larger than they fill."""
    return {"chunk": [min(batch, GPU_CHUNK), GPU_CHUNK]} if device.type == "cuda" else {}


def usual_options(device: torch.device) -> dict[str, object]:
    """How a device samples best: on a GPU in bf16, with CUDA graphs, which small models need."""
    return {"precision": "bf16", "graphs": True} if device.type == "cuda" else {"precision": "fp32"}


def level_states(
    plan: Generator[Stage, State, Tensor], rows: tuple[int, ...], device: torch.device, first: State | None = None
) -> Iterator[State]:
    """The finished state of every level in turn; `first` stands in for level 0's."""
    stage = next(plan)
    with Noise(rows, device) as noise:
        while True:
            state = run_stage(stage, noise) if first is None else first
            yield state
            first = None
            try:
                stage = plan.send(state)
            except StopIteration:
                return


@torch.no_grad()
def sample_levels(
    model: LoadedModel, seeds: Sequence[int], labels: Sequence[int] | None = None, *, batch: int = 16,
    prompts: Sequence[str] | None = None, **options: object,
) -> list[np.ndarray]:  # fmt: skip
    """uint8 [N, T, H, W, 3] per level, all from one pass of the cascade; options go before `level_chunks`."""
    device = next(model.family.parameters()).device
    usual = {**usual_options(device), **level_chunks(device, batch)}
    section = sample_options(model, {**usual, **options})
    labels = labels_of(model, seeds, ()) if labels is None else list(labels)
    forms = hpdm_of(model).levels
    levels: list[list[np.ndarray]] = []
    for start in range(0, len(seeds), batch):
        rows = tuple(seeds[start : start + batch])
        given = None if labels is None else tuple(labels[start : start + batch])
        texts = None if prompts is None else tuple(prompts[start : start + batch])
        plan = model.family.plan(Request(rows, given, texts, device=device), section)
        with matmul_precision(section.precision), autocast(device, section.precision):
            for level, state in enumerate(level_states(plan, rows, device)):
                if len(levels) <= level:
                    levels.append([])
                levels[level].append(to_uint8(state["video"] * forms[level].scale).cpu().numpy())
    return [np.concatenate(parts) for parts in levels]


def real_levels(
    store: VideoStore, pyramid: Pyramid, num: int, seed: int = 0, classes: Sequence[int] | None = None
) -> tuple[list[np.ndarray], list[int], list[int]]:
    """Real clips at every level (uint8 [N, T, H, W, 3] each), their labels and clip indices; windows drawn by seed."""
    usable = [
        c for c in store.clips if c.num_frames >= pyramid.video[0] and (classes is None or c.label in set(classes))
    ]
    videos: list[list[np.ndarray]] = [[] for _ in range(pyramid.num_levels)]
    labels, indices = [], []
    for i in range(num):
        rng = numpy_stream(seed, "benchmark/real", i)
        clip = usable[i % len(usable)]
        start = int(rng.integers(clip.num_frames - pyramid.video[0] + 1))
        for level in range(pyramid.num_levels):
            frames, height, width = pyramid.extent(level)
            window = Window((height, width), start, pyramid.step(level)[0], frames, 0, 0, height, width)
            videos[level].append(store.read(clip.index, window))
        labels.append(clip.label if clip.label is not None else -1)
        indices.append(clip.index)
    return [np.stack(v) for v in videos], labels, indices


class RandomFeatures:
    """64 seeded random features of a clip of any length (frames repeated or strided to 16)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.detector = build_detector(DetectorSection(name="random-i3d"), weights=None, device=device)
        rng = numpy_stream(0, "benchmark/projection")
        self.projection = rng.standard_normal((self.detector.dimension, WIDTH)) / np.sqrt(self.detector.dimension)

    @torch.no_grad()
    def __call__(self, videos_NTHWC: np.ndarray) -> np.ndarray:
        """float64 [N, 64]."""
        index = np.arange(FRAMES) * videos_NTHWC.shape[1] // FRAMES
        rows = []
        for start in range(0, len(videos_NTHWC), 16):
            clips = torch.from_numpy(videos_NTHWC[start : start + 16][:, index]).to(self.device)
            rows.append(self.detector.features(clips).double().cpu().numpy())
        return np.concatenate(rows) @ self.projection


def with_classes(features: np.ndarray, labels: Sequence[int], num_classes: int, unit: float) -> np.ndarray:
    """Features beside one-hot classes of comparable size: the Fréchet distance then sees which class shows what."""
    one_hot = np.eye(num_classes)[np.asarray(labels)] * unit
    return np.concatenate([features, one_hot], axis=1)


def rfd(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two feature tables."""
    return frechet_from_features(a, b)
