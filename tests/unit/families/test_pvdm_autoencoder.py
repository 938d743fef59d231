import pytest
import torch

from hpdm_core.families.pvdm.autoencoder import patches
from tests.support import tiny_pvdm
from tests.support.tiny_pvdm import GRID, PATCH, VIDEO


@pytest.fixture(scope="module")
def family():
    return tiny_pvdm.tiny_family()


@pytest.mark.parametrize("video", [(4, 16, 24), (2, 8, 8), (8, 24, 16)])
@torch.no_grad()
def test_a_clip_goes_to_bounded_latents_and_back(video):
    family = tiny_pvdm.tiny_family(video=video)
    t, h, w = video[0], video[1] // PATCH, video[2] // PATCH
    clip = torch.rand(2, 3, *video) * 2 - 1
    z = family.autoencoder.encoder(clip)
    assert z.shape == (2, 3, h * w + t * (h + w))
    assert z.abs().max() < 1
    output = family.autoencoder.decoder(z)
    assert output.shape == clip.shape
    assert output.abs().max() <= 1
    assert torch.equal(output, family.autoencoder(clip))


def test_patches_are_the_pixels_of_their_place():
    video = tiny_pvdm.random_video(1)
    cut = patches(video, PATCH)
    assert cut.shape == (1, *GRID, 3 * PATCH**2)
    expected = video[0, :, 2, 4:8, 20:24].permute(1, 2, 0).flatten()
    assert torch.equal(cut[0, 2, 1, 5], expected)


@pytest.mark.parametrize(("plane", "place"), [(0, (1, 4)), (1, (2, 5)), (2, (3, 1))])
@torch.no_grad()
def test_a_cell_reaches_its_whole_fibre_and_nothing_else(family, plane, place):
    """Perturbing z_hw at (h, w) changes what the decoder starts from at all t there, and so for each plane."""
    decoder, z = family.autoencoder.decoder, tiny_pvdm.random_latents(family, 1)
    moved = z.clone()
    family.config.planes.split(moved)[plane][..., place[0], place[1]] += 0.5
    changed = (decoder.meet(moved) != decoder.meet(z)).any(dim=-1)[0]
    expected = torch.zeros(GRID, dtype=torch.bool)
    row, column = place
    index = [(slice(None), row, column), (row, slice(None), column), (row, column, slice(None))][plane]
    expected[index] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_planes_meet_as_a_sum(family):
    decoder, z = family.autoencoder.decoder, tiny_pvdm.random_latents(family, 1)
    hw, tw, th = family.config.planes.split(z)
    named = {"hw": hw[..., 1, 4], "tw": tw[..., 2, 4], "th": th[..., 2, 1]}
    expected = sum(decoder.from_latent[name](cell) for name, cell in named.items())
    torch.testing.assert_close(decoder.meet(z)[:, 2, 1, 4], expected)


@torch.no_grad()
def test_the_projector_reads_its_token(family):
    """With the token cut off from its fibre, nothing of the fibre is left: no position leaks past the token."""
    projector = tiny_pvdm.tiny_family(seed=1).autoencoder.encoder.projectors["hw"]
    fibres = torch.randn(5, GRID[0], 16)
    assert not torch.allclose(projector(fibres), projector(fibres.flip(0)))
    for layer in projector.layers:
        layer.attention.out.weight.zero_()
    torch.testing.assert_close(projector(fibres), projector(fibres.flip(0)))


@torch.no_grad()
def test_projector_positions_tell_the_order(family):
    projector = family.autoencoder.encoder.projectors["th"]
    fibres = torch.randn(5, GRID[2], 16)
    assert not torch.allclose(projector(fibres), projector(fibres.flip(1)), atol=1e-4)


@torch.no_grad()
def test_each_plane_is_made_by_its_own_projector(family):
    encoder, clip = tiny_pvdm.tiny_family(seed=2).autoencoder.encoder, tiny_pvdm.random_video()
    before = family.config.planes.split(encoder(clip))
    encoder.projectors["tw"].token.add_(1.0)
    after = family.config.planes.split(encoder(clip))
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_every_weight_gets_a_gradient():
    family = tiny_pvdm.tiny_family()
    family.autoencoder(tiny_pvdm.random_video()).square().sum().backward()
    assert not [n for n, p in family.autoencoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_reconstruction_learns_one_clip():
    family, clip = tiny_pvdm.tiny_family(), tiny_pvdm.random_batch([0]).videos["clip"]
    optimizer = torch.optim.Adam(family.autoencoder.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        error = (family.autoencoder(clip) - clip).abs().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


def test_shapes_come_from_the_video(family):
    assert tuple(family.config.planes.grid) == GRID
    assert (GRID[0], PATCH * GRID[1], PATCH * GRID[2]) == VIDEO


def test_the_repeated_blocks_are_named():
    family = tiny_pvdm.tiny_family()
    # One block in each trunk, one layer in each of three projectors; 3 + 1 + 4 units of the U-Net.
    assert len(family.autoencoder.units()) == 2 + 3
    assert len(family.compile_units()) == 5 + 8
