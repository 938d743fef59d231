"""The motion share tells content from motion, and the static distance is blind to motion."""

import numpy as np
import pytest

from hpdm_core.metrics.features import Job, extract
from hpdm_core.metrics.protocol import Protocol
from hpdm_core.metrics.scores import METRICS, Tables
from tests.support.toy_detector import ToyDetector

VIEWS = ("video", "static", "shuffled")


def clips(speed, brightness, count=40, seed=0):
    """A bar that moves `speed` pixels a frame over a grey level."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        video = np.full((8, 24, 24, 3), brightness + rng.integers(0, 20), np.uint8)
        start = rng.integers(0, 24)
        for t in range(8):
            video[t, :, (start + speed * t) % 24] = 200
        made.append(video)
    return made


def score(name, fake, real):
    jobs = {view: Job(ToyDetector(), view) for view in VIEWS}
    tables = Tables(Protocol(name="test"), ToyDetector(), extract(fake, jobs), extract(real, jobs))
    return METRICS[name].score(tables)


def test_a_difference_of_speed_is_motion():
    found = score("motion", clips(0, 50, seed=1), clips(3, 50))
    assert found.value > 0.9
    assert found.details["real_frozen_effect"] > found.details["fake_frozen_effect"]
    assert score("frame", clips(0, 50, seed=1), clips(3, 50)).value < 0.1 * found.details["whole"]


def test_a_difference_of_brightness_is_content():
    found = score("motion", clips(3, 120, seed=1), clips(3, 50))
    assert found.value < 0.1
    assert found.details["static"] == pytest.approx(found.details["whole"], rel=0.1)
