"""Weight averages against their closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from hpdm_core.config.schema import EmaSection
from hpdm_core.training.ema import RAMP, Ema, half_life_decay, power_exponent


def averaged(section, values, batch):
    """The tracks after the scalar weight took `values`, one a step of `batch` videos."""
    param = nn.Parameter(torch.zeros(1, dtype=torch.float32))
    ema = Ema(section, {"w": param})
    for step, value in enumerate(values, start=1):
        param.data.fill_(value)
        ema.update(step, step * batch)
    return {track: shadow["w"].item() for track, shadow in ema.shadows.items()}


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_edm2_paper(width, gamma):
    assert power_exponent(width) == pytest.approx(gamma, abs=0.01)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25])
def test_the_profile_has_the_relative_width_it_was_asked_for(width):
    """Standard deviation of the density (g + 1) t^g on [0, 1]."""
    gamma = power_exponent(width)
    t = (np.arange(200_000) + 0.5) / 200_000
    density = (gamma + 1) * t**gamma
    mean = (t * density).mean()
    assert np.sqrt(((t - mean) ** 2 * density).mean()) == pytest.approx(width, rel=1e-3)


def test_impossible_widths_are_refused():
    for width in (0.0, 0.3):
        with pytest.raises(ValueError, match="EMA width"):
            power_exponent(width)


@pytest.mark.parametrize("every", [1, 5])
def test_power_tracks_of_a_ramp(every):
    """Weights w(t) = t: the power-function average at T tends to T (g + 1) / (g + 2)."""
    section = EmaSection(kind="power", widths=(0.05, 0.10), every_steps=every)
    num = 4000
    tracks = averaged(section, [float(i) for i in range(1, num + 1)], batch=8)
    assert list(tracks) == ["power_0.050", "power_0.100"]
    for width, value in zip((0.05, 0.10), tracks.values(), strict=True):
        gamma = power_exponent(width)
        assert value / num == pytest.approx((gamma + 1) / (gamma + 2), abs=2e-3)


def test_the_first_update_forgets_the_initial_weights():
    for section in (EmaSection(kind="power"), EmaSection(kind="half_life")):
        assert set(averaged(section, [3.5], batch=4).values()) == {3.5}


def test_half_life_is_exact_after_the_ramp():
    """A step from 0 to 1, long after the ramp: the average has gone 1 - 2^-(videos / half-life) of the way."""
    half_life, batch = 100.0, 4
    steps_before, steps_after = 1000, 50
    section = EmaSection(kind="half_life", half_life_videos=half_life)
    values = [0.0] * steps_before + [1.0] * steps_after
    (value,) = averaged(section, values, batch).values()
    assert value == pytest.approx(1.0 - 0.5 ** (steps_after * batch / half_life), abs=1e-5)


def test_the_ramp_shortens_early_half_lives():
    decay = half_life_decay(1e9)
    assert decay(108, 8) == pytest.approx(0.5 ** (8 / (RAMP * 100)))


def test_no_tracks_means_the_raw_weights():
    param = nn.Parameter(torch.ones(2))
    ema = Ema(EmaSection(kind="none"), {"w": param})
    ema.update(1, 8)
    assert ema.first == ""
    assert ema.weights()["w"] is param


def test_applied_swaps_the_average_in_and_the_weights_back():
    param = nn.Parameter(torch.tensor([1.0]))
    ema = Ema(EmaSection(kind="half_life", half_life_videos=10.0), {"w": param})
    ema.update(1, 1000)
    param.data.fill_(5.0)
    with ema.applied():
        assert param.item() == 1.0
    assert param.item() == 5.0
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        raise RuntimeError("inside")
    assert param.item() == 5.0
