import logging

import pytest
import torch
from safetensors.torch import save_file

from hpdm_core.errors import ConfigError, IncompatibleCheckpoint, WeightsMissing
from hpdm_core.families.pvdm.config import PerceptualSection
from hpdm_core.families.pvdm.perceptual import STAGES, WIDTHS, PerceptualLoss, load_lpips
from hpdm_core.rng import BatchStreams
from tests.support import tiny_pvdm
from tests.support.watch import Watch


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Seeded random weights under the names of the public files."""
    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    trunk, channels = {}, 3
    for stage, width in zip(STAGES, WIDTHS, strict=True):
        for index in stage:
            scale = (2 / (9 * channels)) ** 0.5
            trunk[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
            trunk[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.05
            channels = width
    trunk["classifier.0.weight"] = torch.zeros(1)
    heads = {
        f"vgg.lin{k}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for k, width in enumerate(WIDTHS)
    }
    save_file(trunk, folder / "vgg.safetensors")
    save_file(heads, folder / "heads.safetensors")
    return folder / "vgg.safetensors", folder / "heads.safetensors"


@pytest.fixture(scope="module")
def network(files):
    return load_lpips(*files)


def frames(seed=0):
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_distance_is_zero_to_itself_symmetric_and_positive(network):
    a, b = frames(0), frames(1)
    assert network(a, a).abs().max() == 0
    torch.testing.assert_close(network(a, b), network(b, a))
    assert network(a, b).min() > 0.01
    torch.testing.assert_close(network(a, b)[1:], network(a[1:], b[1:]), rtol=1e-4, atol=1e-6)


def test_distance_grows_with_the_perturbation(network):
    a, noise = frames(0), torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    distances = [network(a, a + scale * noise).mean().item() for scale in (0.02, 0.1, 0.5)]
    assert distances == sorted(distances)


def test_the_formula_on_one_stage(files, network):
    """Sum over stages of head-weighted squared differences of unit features: checked with one head left."""
    a, b = frames(0), frames(1)
    lone = load_lpips(*files)
    with torch.no_grad():
        for head in lone.heads[1:]:
            head.weight.zero_()
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def features(x):
        for index in STAGES[0]:
            layer = lone.features[str(index)]
            x = torch.relu(torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
        return torch.nn.functional.normalize(x, dim=1)

    squared = (features((a - shift) / scale) - features((b - shift) / scale)).square()
    expected = (squared * lone.heads[0].weight).sum(1).mean(dim=(1, 2))
    torch.testing.assert_close(lone(a, b), expected, rtol=1e-4, atol=1e-6)
    assert network(a, b).sum() > expected.sum()


def test_gradients_reach_the_frames_and_not_the_network(network):
    a = frames(0).requires_grad_()
    network(a, frames(1)).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().min() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_it_brings_no_constants_from_python_to_the_device(network):
    with Watch() as watch:
        network(frames(), frames(1))
    assert watch.seen == []


def test_dead_features_give_finite_gradients(files):
    """Where no feature fires, the unit vector is 0 / 0: a distance there must not poison the step."""
    dead = load_lpips(*files)
    with torch.no_grad():
        dead.features["28"].bias.fill_(-1e6)
    a = frames(0).requires_grad_()
    dead(a, frames(1)).sum().backward()
    assert a.grad.isfinite().all()
    assert a.grad.any()


def test_it_joins_the_reconstruction_loss_and_stays_out_of_the_weights(files):
    paths = {"vgg": str(files[0]), "heads": str(files[1])}
    family = tiny_pvdm.tiny_family(training={"perceptual": paths})
    found = family.losses("autoencoder", tiny_pvdm.random_batch([0, 1]), BatchStreams(0, [0, 1]))
    torch.testing.assert_close(found.total.detach(), 4 * found.parts["l1"] + 4 * found.parts["lpips"])
    assert not [name for name in family.state_dict() if "features" in name or "heads" in name]
    found.total.backward()
    assert family.autoencoder.decoder.to_pixels.weight.grad is not None


def test_without_files_it_says_so_once_and_is_left_out(caplog):
    family = tiny_pvdm.tiny_family()
    batch = tiny_pvdm.random_batch([0])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = family.losses("autoencoder", batch, BatchStreams(0, [0]))
    assert [r.message for r in caplog.records if "L1 alone" in r.message][1:] == []
    assert "model.training.perceptual.vgg" in caplog.text
    assert set(found.terms) == {"l1"}
    assert family.config.training.perceptual == PerceptualSection()


def test_missing_and_foreign_files_are_named(files, tmp_path):
    with pytest.raises(WeightsMissing, match="no LPIPS weights at"):
        load_lpips(tmp_path / "none.safetensors", files[1])
    with pytest.raises(IncompatibleCheckpoint, match=r"has no tensor features\.0\.weight"):
        load_lpips(files[1], files[1])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(IncompatibleCheckpoint, match="not a readable safetensors"):
        PerceptualLoss(PerceptualSection(vgg=str(tmp_path / "junk.safetensors"), heads=str(files[1])))(
            frames(), frames()
        )
    wrong = {f"lin{k}.model.1.weight": torch.zeros(1, 3, 1, 1) for k in range(5)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="does not fit LPIPS"):
        load_lpips(files[0], tmp_path / "wrong.safetensors")


def test_half_a_pair_of_files_is_refused():
    with pytest.raises((ConfigError, ValueError), match="give both vgg and heads"):
        PerceptualSection(vgg="a.safetensors")


@pytest.mark.shared
def test_the_public_heads_load(files, shared_dir):
    network = load_lpips(files[0], shared_dir / "weights" / "lpips_lin_v0.1.safetensors")
    assert [tuple(head.weight.shape) for head in network.heads] == [(1, width, 1, 1) for width in WIDTHS]
    assert all(head.weight.min() >= 0 for head in network.heads)
