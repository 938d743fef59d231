"""What a new network can tell apart before it has learned anything."""

import torch

from tests.support.tiny_hpdm import random_inputs, tiny_family


def test_latents_stay_apart_beside_the_condition_that_all_of_them_read():
    family = tiny_family(lively=False, token_dim=32, latent_dim=32, num_latents=16)
    _, latents = family.denoiser(*random_inputs(family))
    apart = latents - latents.mean(dim=-2, keepdim=True)
    assert apart.square().mean() > 0.1 * latents.square().mean()


def test_a_token_shows_how_bright_it_is():
    stem = tiny_family(lively=False).denoiser.stem
    pixels = torch.randn(1, 1, 1, stem.tokenize.in_features).expand(1, 1, len(stem.position), -1)
    dark, bright = stem(pixels, 0), stem(3 * pixels, 0)
    assert (bright - dark).square().mean() > 0.05 * dark.square().mean()
