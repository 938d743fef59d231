"""What must hold exactly for any weights: direction of information, adaptive computation, fused terms.

The nine structural tests of the method, by number: (i), (ii), (v) and the fusion part of (iii) are here;
(iii), (iv), (vi), (vii), (ix) in tests/unit/pyramid, (viii) in tests/unit/diffusion.
"""

import pytest
import torch

from benchmarks.plain_hpdm import make_plain
from hpdm_core.families.hpdm.context import context_maps, coordinate_grids, mean_context
from hpdm_core.nn.embeddings import place_sinusoids
from hpdm_core.nn.precision import residual_dtype
from tests.support.tiny_hpdm import LOAD, nested_offsets, random_inputs, tiny_family

FUSIONS = ["deep", "shallow", "none"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_i_a_fine_patch_never_changes_a_coarser_output(fusion):
    family = tiny_family(fusion=fusion, self_conditioning=0.9)
    z, noise, offsets, condition = random_inputs(family)
    z.requires_grad_()
    noise.requires_grad_()
    output, latents = family.denoiser(z, noise, offsets, condition)
    for coarse in range(3):
        probe = torch.randn_like(output[coarse])
        total = (output[coarse] * probe).sum() + latents[coarse].sum()
        jacobian, noise_jacobian = torch.autograd.grad(total, (z, noise), retain_graph=True)
        assert jacobian[coarse].abs().sum() > 0
        for fine in range(coarse + 1, 3):
            assert (jacobian[fine] == 0).all()
            assert (noise_jacobian[fine] == 0).all()


def test_i_not_even_by_a_bit():
    family = tiny_family()
    z, noise, offsets, condition = random_inputs(family)
    before, _ = family.denoiser(z, noise, offsets, condition)
    for fine in (1, 2):
        changed = z.clone()
        changed[fine] = 7.0
        after, _ = family.denoiser(changed, noise, offsets, condition)
        assert torch.equal(after[:fine], before[:fine])
        assert not torch.equal(after[fine], before[fine])


@pytest.mark.parametrize(("fusion", "reached"), [("deep", [0, 1, 2]), ("shallow", [0, 1]), ("none", [0])])
def test_ii_level_0_reaches_all_finer_outputs_through_deep_fusion(fusion, reached):
    """Deep: every level. Shallow: only the next. None: only itself."""
    family = tiny_family(fusion=fusion)
    z, noise, offsets, condition = random_inputs(family)
    before, _ = family.denoiser(z, noise, offsets, condition)
    changed = z.clone()
    changed[0] += torch.randn_like(z[0])
    after, _ = family.denoiser(changed, noise, offsets, condition)
    moved = [level for level in range(3) if not torch.equal(after[level], before[level])]
    assert moved == reached
    for level in reached:
        assert (after[level] - before[level]).abs().max() > 1e-4


def test_rows_of_a_batch_do_not_touch_each_other():
    family = tiny_family()
    z, noise, offsets, condition = random_inputs(family, rows=3)
    output, _ = family.denoiser(z, noise, offsets, condition)
    for row in range(3):
        alone, _ = family.denoiser(
            z[:, row : row + 1], noise[:, row : row + 1], offsets[row : row + 1], condition[row : row + 1]
        )
        torch.testing.assert_close(alone[:, 0], output[:, row], atol=1e-5, rtol=0)


def test_iii_the_context_of_a_level_is_the_mean_over_all_coarser_levels():
    """Paint each level's own coordinates on its map: the context is the fine patch's coordinates, but at borders."""
    family = tiny_family()
    net, token = family.denoiser, family.config.token
    offsets = nested_offsets(family.pyramid, 4, seed=2)
    coords = coordinate_grids(family.pyramid, offsets, token)
    maps = context_maps(family.pyramid, offsets, token)
    context = mean_context(coords, maps, net.grid, gradient=True)
    error = (context - coords[1:]).abs()
    # Space: one coarse token of level 0 is 2 * 2 / 8 wide in [-1, 1]; border padding costs at most half of it.
    assert (error < 1e-5).float().mean() > 0.3
    assert error[..., 1:].max() < 0.25
    # The mean, not the sum or the last: maps of constants 1 (level 0) and 3 (level 1) give 1, then 2.
    flat = torch.stack([torch.full_like(coords[0], v) for v in (1.0, 3.0, 9.0)])
    constant = mean_context(flat, maps, net.grid, gradient=True)
    torch.testing.assert_close(constant[0], torch.full_like(coords[0], 1.0))
    torch.testing.assert_close(constant[1], torch.full_like(coords[0], 2.0))


def test_context_gradient_is_a_switch():
    for gradient, expected in ((True, True), (False, False)):
        family = tiny_family(context_gradient=gradient)
        z, noise, offsets, condition = random_inputs(family)
        z.requires_grad_()
        output, _ = family.denoiser(z, noise, offsets, condition)
        (jacobian,) = torch.autograd.grad(output[2].sum(), z)
        assert bool((jacobian[0] != 0).any()) is expected
        assert bool((jacobian[1] != 0).any()) is expected
        assert (jacobian[2] != 0).any()
    # The values are the same either way.
    on, off = tiny_family(context_gradient=True), tiny_family(context_gradient=False)
    inputs = random_inputs(on)
    assert torch.equal(on.denoiser(*inputs)[0], off.denoiser(*inputs)[0])


def count_rows(family, run):
    """Rows through each block while `run()` runs."""
    rows = [0] * len(family.denoiser.blocks)
    handles = [
        block.rin.register_forward_pre_hook(lambda module, args, b=b: rows.__setitem__(b, rows[b] + len(args[0])))
        for b, block in enumerate(family.denoiser.blocks)
    ]
    run()
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize(
    ("load", "evaluations"),
    [(LOAD, [6, 4, 2]), ((3, 3, 3, 3, 3, 3), [6, 6, 6]), ((1, 3, 3), [3, 2, 2])],
)
def test_v_block_evaluations_per_level(load, evaluations):
    family = tiny_family(levels_per_block=load)
    inputs = random_inputs(family, rows=5)
    rows = count_rows(family, lambda: family.denoiser(*inputs))
    assert rows == [5 * n for n in load]
    assert [sum(n > level for n in load) for level in range(3)] == evaluations
    assert sum(rows) == 5 * sum(evaluations)
    z, noise, _, condition = inputs
    for level, expected in enumerate(evaluations):
        counted = count_rows(
            family, lambda level=level: family.denoiser.level_forward(level, z[level], noise[level], {}, condition)
        )
        assert sum(counted) == 5 * expected
        # Fine levels skip the early blocks.
        assert counted == [0] * (len(load) - expected) + [5] * expected


@pytest.mark.parametrize("coordinates", [True, False])
@pytest.mark.parametrize("load", [LOAD, (3, 3), (1, 3, 3)])
def test_level_by_level_with_kept_features_equals_the_joint_pass(load, coordinates):
    """What sampling computes from a cache is what training computed jointly, for the same windows."""
    family = tiny_family(levels_per_block=load, coordinates=coordinates)
    net = family.denoiser
    z, noise, offsets, condition = random_inputs(family, rows=3)
    joint, joint_latents = net(z, noise, offsets, condition)
    maps = context_maps(family.pyramid, offsets, family.config.token)
    coords = coordinate_grids(family.pyramid, offsets, family.config.token)
    kept = []
    for level in range(3):
        terms = {}
        for b in range(family.config.first_blocks[level], len(load)):
            if level == 0:
                continue
            sources = torch.stack([*(kept[k][b] for k in range(level)), torch.zeros_like(kept[0][b])])
            terms[b] = net.fusion_term(
                b, mean_context(sources, maps, net.grid, gradient=True)[level - 1], coords[level]
            )
        out = net.level_forward(level, z[level], noise[level], terms, condition)
        every = tuple(range(family.config.first_blocks[level], len(load)))
        kept.append(net.level_forward(level, z[level], noise[level], terms, condition, keep=every).features)
        torch.testing.assert_close(out.output, joint[level], atol=1e-5, rtol=0)
        torch.testing.assert_close(out.latents, joint_latents[level], atol=1e-5, rtol=0)


def test_a_pass_for_the_sake_of_finer_levels_goes_no_further_than_they_read():
    family = tiny_family(levels_per_block=LOAD)
    z, noise, _, condition = random_inputs(family, rows=5)
    for last in range(1, len(LOAD)):
        kept = {}

        def run(last: int = last, kept: dict = kept) -> None:
            kept |= family.denoiser.level_forward(0, z[0], noise[0], {}, condition, keep=(0, last)).features

        assert count_rows(family, run) == [5] * last + [0] * (len(LOAD) - last)
        assert sorted(kept) == [0, last]


def test_fewer_levels_than_the_model_has_give_the_same_coarse_outputs():
    family = tiny_family()
    z, noise, offsets, condition = random_inputs(family)
    everything, _ = family.denoiser(z, noise, offsets, condition)
    for levels in (1, 2):
        some, _ = family.denoiser(z[:levels], noise[:levels], offsets[:, :levels], condition)
        torch.testing.assert_close(some, everything[:levels], atol=1e-5, rtol=0)


def test_identity_fusion_starts_without_any_influence_of_coarser_levels():
    family = tiny_family(fusion_init="identity")
    z, noise, offsets, condition = random_inputs(family)
    with_all, _ = family.denoiser(z, noise, offsets, condition)
    changed = z.clone()
    changed[0] = 0.0
    without, _ = family.denoiser(changed, noise, offsets, condition)
    assert torch.equal(with_all[1:], without[1:])
    fusion = family.denoiser.blocks[-1].fusion
    x = torch.randn(2, 5, family.config.token_dim)
    torch.testing.assert_close(fusion(x, None), x)


def test_the_fusion_is_one_linear_map_of_width_2d_plus_3():
    """Eq. 9: own, context and position products add up to W [a; ctx; c] + b."""
    family = tiny_family()
    d = family.config.token_dim
    fusion = family.denoiser.blocks[-1].fusion
    a, context, c = torch.randn(2, 4, d), torch.randn(2, 4, d), torch.rand(2, 4, 3)
    weight = torch.cat([fusion.own.weight, fusion.context.weight, fusion.position.T], dim=1)
    assert weight.shape == (d, 2 * d + 3)
    expected = torch.cat([a, context, c], -1) @ weight.T + fusion.own.bias
    torch.testing.assert_close(fusion(a, fusion.context_term(context, c)), expected, atol=1e-5, rtol=1e-5)


def test_level_0_and_blocks_that_process_it_alone_have_no_fusion():
    family = tiny_family()
    assert [block.fusion is not None for block in family.denoiser.blocks] == [False, False, True, True, True, True]
    z, noise, _, condition = random_inputs(family)
    called = []
    for block in family.denoiser.blocks[2:]:
        block.fusion.register_forward_pre_hook(lambda module, args: called.append(len(args[0])))
    family.denoiser.level_forward(0, z[0], noise[0], {}, condition)
    assert called == []


def test_places_may_begin_as_sinusoids_and_are_learned_either_way():
    random, waves = (tiny_family(lively=False, position_init=kind).denoiser for kind in ("random", "sinusoids"))
    assert random.stem.position.std().item() == pytest.approx(0.02, rel=0.2)
    assert waves.stem.position.std().item() == pytest.approx(1.0, rel=0.2)
    left = waves.stem.position - place_sinusoids(waves.grid, 24)
    assert left.std().item() == pytest.approx(0.02, rel=0.3)
    assert waves.stem.position.requires_grad


def test_coordinates_reach_the_fine_levels_only():
    family = tiny_family()
    z, noise, offsets, condition = random_inputs(family)
    output, _ = family.denoiser(z, noise, offsets, condition)
    with torch.no_grad():
        for block in family.denoiser.blocks[2:]:
            block.fusion.position.mul_(3.0)
    moved, _ = family.denoiser(z, noise, offsets, condition)
    assert torch.equal(output[0], moved[0])
    assert not torch.equal(output[1], moved[1])


def test_bf16_streams_change_the_output_little_and_the_latents_dtype():
    family = tiny_family()
    z, noise, offsets, condition = random_inputs(family)
    exact, _ = family.denoiser(z, noise, offsets, condition)
    with torch.autocast("cpu", torch.bfloat16), residual_dtype(torch.bfloat16):
        low, latents = family.denoiser(z, noise, offsets, condition)
    assert latents.dtype == torch.bfloat16
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=0.15, rtol=0.1)


def test_the_literal_fusion_of_the_benchmark_is_the_same_map():
    family = tiny_family()
    inputs = random_inputs(family, rows=3)
    ours, _ = family.denoiser(*inputs)
    make_plain(family)
    plain, _ = family.denoiser(*inputs)
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=1e-5)
