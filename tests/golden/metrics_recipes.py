"""Inputs of the golden metric numbers: integer and seeded arithmetic that any NumPy repeats bit for bit."""

from pathlib import Path

import numpy as np

ARRAYS = Path(__file__).with_name("metrics_golden.npz")


def pcg(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(list(key) if len(key) > 1 else key[0]))


def synth(index: int, frames: int = 16, height: int = 224, width: int = 224, *, fast: bool = False) -> np.ndarray:
    """A drifting triangle wave with a moving square, uint8 [T, H, W, 3]."""
    rng = pcg(2026, index)
    t, y, x = np.ogrid[:frames, :height, :width]
    video = np.empty((frames, height, width, 3), np.uint8)
    for channel in range(3):
        ax, ay, at = rng.integers(-6, 7, size=3)
        phase = int(rng.integers(0, 256))
        u = (ax * x + ay * y + (3 * at if fast else at) * t + phase) % 256
        video[..., channel] = np.where(u < 128, 2 * u, 510 - 2 * u)
    side = int(rng.integers(8, 25))
    left, top = rng.integers(0, height - side + 1, size=2)
    dx, dy = rng.integers(-4, 5, size=2) * (2 if fast else 1)
    colour = rng.integers(0, 256, size=3)
    for k in range(frames):
        at_x, at_y = (left + dx * k) % (width - side + 1), (top + dy * k) % (height - side + 1)
        video[k, at_y : at_y + side, at_x : at_x + side] = colour
    return video


def gaussian_features(count: int, seed: int, shift: float, scale: float) -> np.ndarray:
    """Correlated Gaussian features [count, 400], float32."""
    mixing = pcg(7).standard_normal((400, 400)) * 0.5 ** (np.arange(400) / 40)[None, :] / np.sqrt(400) * 3
    return np.float32(pcg(seed).standard_normal((count, 400)) @ mixing.T * scale + shift)


def class_probabilities() -> np.ndarray:
    """A seeded table of class probabilities [10000, 101], float32."""
    logits = pcg(5).standard_normal((10000, 101)) * 3
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.float32(exponent / exponent.sum(axis=1, keepdims=True))
