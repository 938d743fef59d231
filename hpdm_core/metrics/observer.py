"""An observer: numbers per generated video beside the networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Observer:
    """Measures video number i, uint8 [T, H, W, 3]. `facts`: what its numbers depend on, as plain JSON."""

    measure: Callable[[int, np.ndarray], dict[str, float]]
    facts: dict[str, Any] = field(default_factory=dict)

    def __call__(self, index: int, video_THWC: np.ndarray) -> dict[str, float]:
        """The numbers of one video by name."""
        return self.measure(index, video_THWC)
