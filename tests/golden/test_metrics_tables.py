"""Kernel distances, Inception Scores, C3D and the peers' formulas against golden numbers, all from seeded inputs."""

import numpy as np
import pytest
import torch

from hpdm_core.errors import IncompatibleCheckpoint
from hpdm_core.metrics.c3d import CONVOLUTIONS, LINEARS, build_c3d
from hpdm_core.metrics.identify import convert_weights, identify
from hpdm_core.metrics.inception import inception_score
from hpdm_core.metrics.kernel import jedi_distance, kernel_video_distance
from hpdm_core.metrics.peer_formulas import distance_by, sqrtm_distance
from hpdm_core.metrics.random_weights import random_c3d_weights
from tests.golden.metrics_recipes import ARRAYS, class_probabilities, gaussian_features, synth


@pytest.fixture(scope="module")
def probabilities():
    return class_probabilities()


def test_kernel_distances():
    fake, real = gaussian_features(512, 11, 0.05, 1.1), gaussian_features(512, 12, 0.0, 1.0)
    assert kernel_video_distance(fake, real).value == pytest.approx(0.00799743305302858, rel=1e-9)
    assert jedi_distance(fake, real).value == pytest.approx(0.2516775764984252, rel=1e-9)


def test_recipe_of_probabilities(probabilities):
    expected = [4.1462317312834784e-05, 8.64950652612606e-06, 0.00021821797417942435, 0.0016228108434006572]
    assert probabilities[0, :4] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("count", "splits", "seed", "mean", "std"),
    [
        (10000, 10, 42, 12.807093620300293, 0.2684968113899231),  # StyleGAN-V, in float32 there
        (2048, 10, 42, 12.264570236206055, 0.5488373041152954),
        (10000, 10, None, 12.796560096820691, 0.3586711138016854),  # TGANv2
        (2048, 1, None, 12.99524422543521, 0.0),
        (10000, 1, None, 12.969409942626953, 0.0),  # TGAN, with its log(p + 1e-7)
    ],
)
def test_inception_scores(probabilities, count, splits, seed, mean, std):
    found = inception_score(probabilities[:count], splits, seed)
    assert found.value == pytest.approx(mean, rel=1e-5)
    assert found.std == pytest.approx(std, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "float32_svd", "tfgan", "styleganv"),
    [
        (2048, 9.261445999145508, 9.166303511591922, 9.162174832646592),
        (64, 163.59674072265625, 163.57978619726123, 161.17093951679357),
    ],
)
def test_formulas_of_the_peers(count, float32_svd, tfgan, styleganv):
    fake, real = gaussian_features(count, 11, 0.05, 1.1), gaussian_features(count, 12, 0.0, 1.0)
    # float32 square roots depend on the LAPACK at hand in the fourth digit.
    assert distance_by("float32_svd", fake, real, 1) == pytest.approx(float32_svd, rel=1e-3)
    assert distance_by("tfgan", fake, real, 1) == pytest.approx(tfgan, rel=1e-8)
    assert sqrtm_distance(fake, real, 0) == pytest.approx(styleganv, rel=1e-6)


def test_float32_statistics_are_one_percent_off():
    fake, real = gaussian_features(2048, 11, 0.05, 1.1), gaussian_features(2048, 12, 0.0, 1.0)
    assert distance_by("float32_svd", fake, real, 1) / distance_by("exact", fake, real, 1) > 1.005


def converted_c3d(folder):
    """The seeded network as it circulates: chainer's names in one file, the mean in another; then converted."""
    tensors = random_c3d_weights(CONVOLUTIONS, LINEARS)
    np.savez(folder / "mean2.npz", mean=tensors.pop("mean").numpy())
    renamed = {k.replace(".weight", "/W").replace(".bias", "/b"): v.numpy() for k, v in tensors.items()}
    np.savez(folder / "net.npz", **renamed)
    with pytest.raises(IncompatibleCheckpoint, match="no tensor for mean"):
        identify(folder / "net.npz")
    assert convert_weights(folder / "net.npz", folder / "c3d.safetensors", mean=folder / "mean2.npz").kind == "c3d"
    return build_c3d(folder / "c3d.safetensors", "cpu").network


@pytest.mark.slow
def test_c3d_preprocessing_and_scores(tmp_path):
    network = converted_c3d(tmp_path)
    clip = torch.from_numpy(synth(0, 16, 64, 64))[None].movedim(-1, 1).float().div(127.5).sub(1)
    with np.load(ARRAYS) as arrays, torch.inference_mode():
        prepared = network.preprocess(clip)
        assert prepared.double().sum(dim=(2, 3, 4))[0].numpy() == pytest.approx(arrays["c3d__pre_sum"][0], rel=1e-4)
        assert np.abs(prepared[0, :, :2, :3, :3].numpy() - arrays["c3d__pre_corner"][0]).max() < 1e-3
        scores, expected = network(clip).numpy(), arrays["c3d__fc8"]
    assert np.linalg.norm(scores - expected) / np.linalg.norm(expected) < 1e-4
