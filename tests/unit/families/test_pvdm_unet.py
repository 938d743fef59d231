import pytest
import torch
from torch import nn

from hpdm_core.conditioning.conditions import Condition
from hpdm_core.families.pvdm.planes import join_cells
from hpdm_core.families.pvdm.unet import CellAttention, PlaneUnit, ResampleBlock
from tests.support import tiny_pvdm

TEXT = {"kind": "text", "text": {"mode": "joint", "width": 8, "layers": 1, "heads": 2, "words": ("ring", "star", "a")}}


def inputs(family, rows=2, seed=0):
    z, previous = tiny_pvdm.random_latents(family, rows, seed), tiny_pvdm.random_latents(family, rows, seed + 1)
    return z, previous, torch.linspace(0.1, 0.9, rows), None


@torch.no_grad()
def test_the_output_starts_at_zero():
    family = tiny_pvdm.tiny_family(lively=False)
    output = family.denoiser(*inputs(family))
    assert output.shape == inputs(family)[0].shape
    assert output.dtype == torch.float32
    assert not output.any()


@pytest.mark.parametrize("video", [(4, 16, 24), (4, 16, 16), (8, 8, 24)])
@torch.no_grad()
def test_any_grid_that_halves_works(video):
    family = tiny_pvdm.tiny_family(video=video)
    z, *rest = inputs(family)
    assert family.denoiser(z, *rest).shape == z.shape


@torch.no_grad()
def test_planes_of_equal_shape_are_batched_without_effect():
    family = tiny_pvdm.tiny_family()
    unit, embedding = family.denoiser.down[0], torch.randn(2, family.denoiser.embedding_dim)
    x = [torch.randn(2, 8, 4, 4) for _ in range(3)]
    together = unit(x, embedding)
    alone = [unit._plane(plane, embedding) for plane in x]
    torch.testing.assert_close(join_cells(together), unit.cross(join_cells(alone)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_unit_carries_a_plane_to_all_planes_and_only_through_the_cross_attention():
    family = tiny_pvdm.tiny_family()
    unit, embedding = family.denoiser.down[0], torch.randn(1, family.denoiser.embedding_dim)
    x = [torch.randn(1, 8, *shape) for shape in family.config.planes.shapes]
    moved = [x[0] + torch.randn_like(x[0]), *x[1:]]

    def changed():
        pairs = zip(unit(x, embedding), unit(moved, embedding), strict=True)
        return [not torch.allclose(a, b, atol=1e-6) for a, b in pairs]

    assert changed() == [True, True, True]
    unit.cross.out.weight.zero_()
    assert changed() == [True, False, False]


def test_every_unit_but_the_stem_ends_in_attention_across_planes():
    family = tiny_pvdm.tiny_family()
    units = family.denoiser.units()
    assert all(isinstance(unit, PlaneUnit) and isinstance(unit.cross, CellAttention) for unit in units)
    # 1 block + 1 down + 1 block; middle; 2 x 2 up.
    assert (len(family.denoiser.down), len(family.denoiser.up)) == (3, 4)


@torch.no_grad()
def test_the_clip_before_enters_and_zeros_mean_none():
    family = tiny_pvdm.tiny_family()
    z, previous, noise, _ = inputs(family)
    with_it, without = family.denoiser(z, previous, noise), family.denoiser(z, torch.zeros_like(z), noise)
    assert not torch.allclose(with_it, without, atol=1e-3)
    stem = family.denoiser.stem
    channels = family.config.latent_channels
    stem.weight[:, channels:] = 0
    torch.testing.assert_close(family.denoiser(z, previous, noise), without)


@torch.no_grad()
def test_noise_level_and_class_change_the_output():
    family = tiny_pvdm.tiny_family()
    z, previous, noise, _ = inputs(family)
    term = Condition(family.labels(torch.tensor([0, 1])))
    base = family.denoiser(z, previous, noise, term)
    assert not torch.allclose(base, family.denoiser(z, previous, noise.flip(0), term), atol=1e-4)
    other = Condition(family.labels(torch.tensor([0, 2])))
    output = family.denoiser(z, previous, noise, other)
    torch.testing.assert_close(output[0], base[0])
    assert not torch.allclose(output[1], base[1], atol=1e-4)


@torch.no_grad()
def test_the_tokens_of_a_text_are_read_and_its_padding_is_not():
    family = tiny_pvdm.tiny_family(condition=TEXT)
    z, previous, noise, _ = inputs(family)
    tokens = torch.randn(2, 3, family.denoiser.embedding_dim, generator=torch.Generator().manual_seed(0))
    base = family.denoiser(z, previous, noise, Condition(tokens))
    # The same mean, and so the same embedding: only the attentions can tell.
    other = tokens + torch.tensor([1.0, -1.0, 0.0])[:, None] * torch.linspace(-2, 2, tokens.shape[-1])
    assert not torch.allclose(base, family.denoiser(z, previous, noise, Condition(other)), atol=1e-3)
    padded = torch.cat([tokens, torch.full_like(tokens, 9.0)], dim=1)
    mask = (torch.arange(6) < 3).expand(2, -1)
    torch.testing.assert_close(family.denoiser(z, previous, noise, Condition(padded, mask)), base)


@torch.no_grad()
def test_resampling_blocks_move_their_skip_too():
    x, embedding = torch.randn(1, 8, 4, 6), torch.randn(1, 16)
    down = ResampleBlock(8, 16, nn.AvgPool2d(2))
    up = ResampleBlock(8, 16, nn.Upsample(scale_factor=2))
    # Their residual branch starts at zero: what is left is the resampled input.
    torch.testing.assert_close(down(x, embedding), nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(up(x, embedding), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert down.conv_in(x).shape == (1, 8, 2, 3)


@pytest.mark.parametrize("condition", [{"kind": "none"}, TEXT], ids=["none", "text"])
def test_every_weight_gets_a_gradient(condition):
    family = tiny_pvdm.tiny_family(condition=condition)
    z, previous, noise, _ = inputs(family)
    told = None if family.text is None else Condition(*family.text(["a ring", "a star"]))
    family.denoiser(z, previous, noise, told).square().sum().backward()
    still = [n for n, p in family.denoiser.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
