"""I3D logits on seeded weights against the original TF graph and the peers' own ports, to 1e-4."""

import hashlib

import numpy as np
import pytest
import torch

from hpdm_core.metrics.i3d_weights import i3d_from
from hpdm_core.metrics.random_weights import random_i3d_weights
from hpdm_core.metrics.resize import resize_clips
from hpdm_core.metrics.weight_files import tensors_digest
from tests.golden.metrics_recipes import ARRAYS, synth

WEIGHTS_SHA256 = "2889c9482c89aa1491900bdf781cc0948704ce384aab5dbf08cd52ce79702b98"


@pytest.fixture(scope="module")
def weights():
    return random_i3d_weights()


def logits(weights, frames, height, width, *, eps=1e-3, rule="half_pixel", fit="stretch"):
    clip = torch.from_numpy(synth(0, frames, height, width))[None]
    x = clip.movedim(-1, 1).float().mul(2 / 255).sub(1)
    with torch.inference_mode():
        return i3d_from(weights, eps)(resize_clips(x, (224, 224), rule, fit)).numpy()


def golden(key):
    with np.load(ARRAYS) as arrays:
        return arrays[key]


def test_recipes_are_intact(weights):
    assert tensors_digest(weights) == WEIGHTS_SHA256
    digest = hashlib.sha256(synth(0, 16, 64, 64).tobytes()).hexdigest()
    assert digest == "b9638505b1461defc2fcd022ea3a12a89b9b9187a21d25df7c4c0a2ae3419659"


@pytest.mark.parametrize("frames", [10, 16, 17])
def test_logits_equal_the_tensorflow_graph(weights, frames):
    assert np.abs(logits(weights, frames, 224, 224) - golden(f"tf__synth224_T{frames}")).max() < 1e-4


@pytest.mark.parametrize(
    ("key", "height", "width", "rule", "fit"),
    [
        ("tf__synth64_T16_tf1legacyresize", 64, 64, "tf1_legacy", "stretch"),
        ("tf__synth240x320_T16_tf1legacyresize", 240, 320, "tf1_legacy", "stretch"),
        ("torch__synth64_T16_halfpixel", 64, 64, "half_pixel", "stretch"),
        ("torch__synth240x320_T16_stretch_halfpixel", 240, 320, "half_pixel", "stretch"),
        ("torch__synth240x320_T16_shortside_crop", 240, 320, "half_pixel", "crop"),
    ],
)
def test_each_resize_convention(weights, key, height, width, rule, fit):
    assert np.abs(logits(weights, 16, height, width, rule=rule, fit=fit) - golden(key)).max() < 1e-4


def test_epsilon_of_the_videogpt_family_is_another_network(weights):
    theirs = golden("torch__synth224_T16_videogpt_eps1e-5")
    assert np.abs(logits(weights, 16, 224, 224, eps=1e-5) - theirs).max() < 1e-4
    ours = golden("tf__synth224_T16")
    assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours) > 5e-3
