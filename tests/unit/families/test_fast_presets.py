"""What `--fast` of the chained and the nested presets does to data whose best denoiser is known."""

import pytest
import torch

from hpdm_core.diffusion.schedule import cosine, scaled_linear
from hpdm_core.families.mdm.config import MdmModel
from hpdm_core.families.pvdm.config import PvdmModel
from hpdm_core.families.registry import load_run_config
from hpdm_core.sampling.solvers import solver_info

SPREADS = (0.1, 0.3, 0.6)
"""Standard deviations of data in [-1, 1]: nearly still, and as wide as pixels or latents are."""


def process(model):
    """The schedule of a preset's model and the input scale of each of its components."""
    if isinstance(model, MdmModel):
        return cosine(model.num_times), [side ** (model.shift_power / 2) for side in model.scales]
    assert isinstance(model, PvdmModel)
    return scaled_linear(model.beta_start, model.beta_end, model.num_times), [1.0]


def worst_spread(sample, eta, model):
    """The largest relative error of the standard deviation of Gaussian samples, over components and spreads."""
    info = solver_info(sample["solver"][0])
    options = {"eta": eta} if "eta" in info.options else {}
    schedule, scales = process(model)
    sigmas = schedule.grid(sample["steps"][0])
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([spread / scale for scale in scales for spread in SPREADS], dtype=torch.float64)

    def noise(step):
        return {"x": torch.randn(8_000, len(true), dtype=torch.float64, generator=generator)}

    def denoise(state, sigma):
        return {"x": state["x"] * true**2 / (true**2 + sigma**2)}

    start = {"x": noise(-1)["x"] * float(sigmas[0])}
    made = info.run(denoise, start, sigmas, noise, lambda *_: None, **options)["x"]
    return (made.std(0) / true - 1).abs().max().item()


@pytest.mark.parametrize("preset", ["pvdm-ucf101-l", "mdm-ucf101", "mdm-image-1024"])
def test_fast_keeps_the_spread_of_gaussian_data_about_as_well_as_the_default(preset):
    config = load_run_config(preset)
    eta = getattr(config.sample, "eta", 0.0)
    settings = [{**config.sample.model_dump(), **changes} for changes in ({}, config.sample.fast, {"steps": [8]})]
    slow, fast, too_few = (worst_spread(setting, eta, config.model) for setting in settings)
    assert fast < max(slow, 0.15)
    assert too_few > max(slow, 0.15)
