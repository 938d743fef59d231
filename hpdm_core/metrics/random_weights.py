"""Seeded random weights for I3D and C3D: a feature network for machines that have no trained one.

Distances with these weights are *not* FVD (they are labelled rFVD). They are deterministic on every machine, since
NumPy draws them tensor by tensor from streams named after the tensors, and the golden tests run on them: the
original TF graph has been run with exactly these numbers.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from hpdm_core.metrics.i3d import MIXED

RANDOM_SEED = 20260101


def _stream(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([RANDOM_SEED, zlib.crc32(key.encode())]))


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def i3d_units() -> list[tuple[str, int, int, int]]:
    """(name, inputs, outputs, kernel) of I3D's 57 convolution-BatchNorm units, in network order."""
    units = [("Conv3d_1a_7x7", 3, 64, 7), ("Conv3d_2b_1x1", 64, 64, 1), ("Conv3d_2c_3x3", 64, 192, 3)]
    for name, (inputs, (o0, o1, o2, o3, o4, o5)) in MIXED.items():
        units += [
            (f"{name}.b0", inputs, o0, 1),
            (f"{name}.b1a", inputs, o1, 1),
            (f"{name}.b1b", o1, o2, 3),
            (f"{name}.b2a", inputs, o3, 1),
            (f"{name}.b2b", o3, o4, 3),
            (f"{name}.b3b", inputs, o5, 1),
        ]
    return units


def random_i3d_weights() -> dict[str, Tensor]:
    """The 287 tensors of a seeded I3D, in the network's own names, float32."""
    arrays: dict[str, np.ndarray] = {}
    for name, inputs, outputs, k in i3d_units():
        key = f"{name}.conv3d.weight"
        draw = _stream(key).standard_normal((outputs, inputs, k, k, k))
        arrays[key] = _float32(draw * np.sqrt(2 / (inputs * k**3)))
        rng = _stream(f"{name}.bn")
        arrays[f"{name}.bn.bias"] = _float32(rng.standard_normal(outputs) * 0.1)
        arrays[f"{name}.bn.running_mean"] = _float32(rng.standard_normal(outputs) * 0.1)
        arrays[f"{name}.bn.running_var"] = _float32(rng.uniform(0.5, 1.5, outputs))
        arrays[f"{name}.bn.weight"] = np.ones(outputs, np.float32)
    weight = _stream("logits.conv3d.weight").standard_normal((400, 1024, 1, 1, 1))
    arrays["logits.conv3d.weight"] = _float32(weight * np.sqrt(1 / 1024))
    arrays["logits.conv3d.bias"] = _float32(_stream("logits.conv3d.bias").standard_normal(400) * 0.1)
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}


def random_c3d_weights(
    convolutions: dict[str, tuple[int, int]], linears: dict[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """A seeded C3D in PyTorch names with its mean volume [3, 16, 128, 171], float32."""
    arrays = {"mean": _float32(_stream("mean").uniform(90, 110, size=(3, 16, 128, 171)))}
    shapes = {name: ((o, i, 3, 3, 3), 27 * i) for name, (i, o) in convolutions.items()}
    shapes |= {name: ((o, i), i) for name, (i, o) in linears.items()}
    for name, (shape, fan_in) in shapes.items():
        rng = _stream(name)
        arrays[f"{name}.weight"] = _float32(rng.standard_normal(shape) * np.sqrt(2 / fan_in))
        arrays[f"{name}.bias"] = _float32(rng.standard_normal(shape[0]) * 0.1)
    return {key: torch.from_numpy(value) for key, value in arrays.items()}
