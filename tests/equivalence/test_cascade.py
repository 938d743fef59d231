"""The cascade against what it must equal: itself in any batch, its own outline, the joint pass, an oracle."""

import itertools

import pytest
import torch

from benchmarks.plain_tiles import plain_tiles
from hpdm_core.conditioning.conditions import Condition
from hpdm_core.diffusion.process import corrupt
from hpdm_core.errors import ConfigError
from hpdm_core.families.hpdm.branch import Branch
from hpdm_core.families.hpdm.cascade import Cascade
from hpdm_core.families.hpdm.config import HpdmSample
from hpdm_core.families.hpdm.denoiser import LevelOutput
from hpdm_core.pyramid.extract import crop, level_video
from hpdm_core.sampling.engine import run_plan
from hpdm_core.sampling.stage import Request
from tests.support.tiny_hpdm import sample, tiny_family

QUICK = {"steps": (2, 1, 1)}


def cascade_of(family, seeds=(0, 1), labels=None, *, request=None, **options):
    options = HpdmSample(**{"steps": (3, 2, 2), **options})
    return Cascade(family, Request(seeds, labels, **(request or {})), options)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("options", [{"guidance": (2.0,), "overlap": "none"}, {"cache": False, "overlap": "none"}])
def test_a_sample_is_the_same_pixels_whatever_is_made_beside_it(options, chunk):
    """Bit for bit, from 1, 3 and 8 seeds; with 5 tiles a call they also sit at other rows of the call."""
    family = tiny_family()
    alone = sample(family, [5], [2], chunk=chunk, **QUICK, **options)
    three = sample(family, [9, 5, 2], [0, 2, 1], chunk=chunk, **QUICK, **options)
    eight = sample(family, list(range(8)), [3, 1, 0, 2, 3, 2, 1, 0], chunk=chunk, **QUICK, **options)
    assert torch.equal(three[1], alone[0])
    assert torch.equal(eight[5], alone[0])
    assert not torch.equal(three[0], alone[0])


def test_another_chunk_size_changes_rounding_only():
    family = tiny_family()
    videos = [sample(family, [5, 6], [2, 1], chunk=chunk, **QUICK) for chunk in (None, 7, 50)]
    for video in videos[1:]:
        # Rounding: five seeds give 3e-6 to 2.1e-5 on values up to 3.6.
        torch.testing.assert_close(video, videos[0], atol=5e-5, rtol=0)


def finished_levels(cascade, branch, upto):
    """Random finished canvases for levels below `upto`, told to the branch as sampling would."""
    for level in range(upto):
        branch.enter(level)
        shape = (len(cascade.request.seeds), 3, *cascade.pyramid.extent(level))
        video = torch.randn(shape, generator=torch.Generator().manual_seed(level)).clamp(-1, 1)
        branch.finish(cascade._context_state(video, level))
    branch.enter(upto)


@pytest.mark.parametrize("overlap", ["none", "spatial", "full"])
@torch.no_grad()
def test_cached_context_is_exact_for_the_windows_it_was_computed_on(overlap):
    """Each tile's chain made of its own ancestor tiles, run jointly, gives what the cache gives."""
    family = tiny_family()
    cascade = cascade_of(family, labels=(1, 3), overlap=overlap)
    condition = family.labels(torch.tensor([1, 3]))
    for level in (1, 2):
        branch = Branch(cascade, Condition(condition))
        finished_levels(cascade, branch, level)
        grid, sigma = cascade.grids[level], 0.7
        canvas = torch.randn(2, 3, *cascade.pyramid.extent(level), generator=torch.Generator().manual_seed(9))
        cached = branch.denoise(canvas, sigma, grid)
        ancestors = branch.tiles[grid].ancestors
        tiles = []
        for n, offset in enumerate(grid.offsets):
            coarse = [cascade.grids[k].offsets[ancestors[k][n]] for k in range(level)]
            chain = torch.stack([*(torch.from_numpy(o) for o in coarse), torch.from_numpy(offset)]).expand(2, -1, -1)
            form, tile = family.levels[level], crop(canvas, tuple(offset), family.pyramid.patch)
            z = [crop(branch.canvases[k], tuple(coarse[k]), family.pyramid.patch) for k in range(level)]
            noise = torch.stack([branch._noise(s, 2) for s in [cascade.context_sigma] * level + [sigma]])
            output, _ = family.denoiser(torch.stack([*z, form.network_input(tile, sigma)]), noise, chain, condition)
            tiles.append(form.denoised(tile, output[-1], sigma))
        exact = grid.merge(torch.stack(tiles, dim=1).flatten(0, 1))
        assert exact.abs().max() > 0.1
        assert (cached - exact).abs().max() <= 1e-5


@torch.no_grad()
def test_the_exact_chain_equals_the_cache_where_there_is_one_ancestor():
    """Level 1 has one possible context, level 0's only patch: cached and recomputed agree on the whole canvas."""
    family = tiny_family()
    request = {"size": (16, 16)}
    cached = sample(family, [0], [1], request=request)
    exact = sample(family, [0], [1], request=request, cache=False)
    torch.testing.assert_close(cached, exact, atol=2e-5, rtol=0)


def test_guidance_of_one_is_conditional_and_of_zero_is_the_null_class():
    family = tiny_family()
    plain = sample(family, [0], [2], **QUICK)
    null = sample(family, [0], None, **QUICK)
    assert torch.equal(sample(family, [0], [2], guidance=(1.0,), **QUICK), plain)
    assert torch.equal(sample(family, [0], [2], guidance=(0.0,), **QUICK), null)
    assert not torch.equal(plain, null)
    assert not torch.equal(sample(family, [0], [2], guidance=(2.0,), **QUICK), plain)
    # No class was asked for: there is nothing to guide towards.
    assert torch.equal(sample(family, [0], None, guidance=(5.0,), **QUICK), null)


@pytest.mark.parametrize(
    ("guidance", "levels"), [((2.0, 1.0), 1), ((1.0, 2.0, 1.0), 2), ((2.0, 1.0, 2.0), 3), ((1.0,), 0)]
)
def test_the_null_branch_goes_no_further_than_guidance(guidance, levels, monkeypatch):
    """What it would know of coarser levels is made for no level that never asks it; the video is the same."""
    family, done, seen = tiny_family(), [], []
    for name in ("enter", "finish"):
        original = getattr(Branch, name)

        def watch(branch, *args, name=name, original=original):
            if branch not in seen:
                seen.append(branch)
            done.append((name, seen.index(branch)))
            return original(branch, *args)

        monkeypatch.setattr(Branch, name, watch)
    video = sample(family, [0], [2], guidance=guidance, **QUICK)
    assert [done.count(("enter", 1)), done.count(("finish", 1))] == [levels, max(levels - 1, 0)]
    assert [done.count(("enter", 0)), done.count(("finish", 0))] == [3, 2]
    monkeypatch.setattr(Cascade, "_live", lambda cascade, level: 2)
    assert torch.equal(sample(family, [0], [2], guidance=guidance, **QUICK), video)


def count(family, cascade, seeds):
    """(denoiser calls by the solver per level, rows through RIN blocks per level) of a whole run."""
    calls, rows, stages = [], [], []
    for block in family.denoiser.blocks:
        block.rin.register_forward_pre_hook(lambda module, args: rows.__setitem__(-1, rows[-1] + len(args[0])))

    def watched():
        plan, state = cascade.stages(), None
        while True:
            rows.append(0)
            try:
                stage = next(plan) if state is None else plan.send(state)
            except StopIteration as finished:
                return finished.value
            stages.append(stage)
            calls.append(0)
            rows[-1] = 0

            def denoise(state, sigma, step, inner=stage.denoise):
                calls[-1] += 1
                return inner(state, sigma, step)

            object.__setattr__(stage, "denoise", denoise)
            state = yield stage

    video = run_plan(watched(), seeds, "cpu")
    return calls, rows, stages, video


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": "none", "solver": ("heun", "dpmpp_2m", "ancestral")},
        {"overlap": "full", "guidance": (1.0, 3.0)},
        {"cache": False, "overlap": "none", "guidance": (3.0,)},
        {"level": 1, "overlap": "time"},
    ],
)
def test_the_outline_is_what_runs(options):
    family, seeds = tiny_family(), (4,)
    cascade = cascade_of(family, seeds, (1,), **options)
    outline = cascade.outline()
    calls, rows, stages, video = count(family, cascade, seeds)
    assert video.shape == (1, 3, outline.frames, *outline.size)
    assert calls == [s.calls for s in outline.stages] == [s.calls for s in stages]
    assert [s.name for s in outline.stages] == [s.name for s in stages]
    assert [len(s.sigmas) - 1 for s in stages] == [s.steps for s in outline.stages]
    for level, planned in enumerate(outline.stages):
        assert planned.tiles == len(cascade.grids[level])
        assert stages[level].shapes == {"video": (3, planned.frames, *planned.size)}
        assert rows[level] == planned.block_evals
        assert planned.tile_calls == planned.tiles * planned.calls
    # Keeping a finished level's features is one more pass over its tiles, counted apart.
    assert len(rows) == len(stages) + 1


def test_each_level_ends_at_its_own_lowest_noise():
    family, seeds = tiny_family(), (4,)
    stages = count(family, cascade_of(family, seeds, (1,), steps=(4, 2, 3), sigma_min=(0.01, 0.5)), seeds)[2]
    assert [s.sigmas[-2].item() for s in stages] == pytest.approx([0.01, 0.5, 0.5])
    assert all(s.sigmas[0].item() == pytest.approx(family.config.sigma_max) for s in stages)
    usual = count(family, cascade_of(family, seeds, (1,), steps=(4, 2, 3)), seeds)[2]
    assert [s.sigmas[-2].item() for s in usual] == pytest.approx([family.config.sigma_min] * 3)


def test_context_is_no_cleaner_than_training_showed_it():
    family = tiny_family()
    draws = family.schedule.draw(torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    given = cascade_of(family).context_sigma
    assert 0.015 < (draws < given).float().mean() < 0.03
    assert cascade_of(family, context_sigma=0.3).context_sigma == 0.3


def test_costs_of_the_paper_in_block_evaluations():
    """spec §4, UCF with spatial overlap, cached: 1,530 and 4,608 and 12,544."""
    options = HpdmSample(steps=(128, 64, 32))
    config = {"video": (64, 32, 32), "patch": (16, 8, 8)}
    outline = tiny_family(**config).outline(Request((0,), (0,)), options)
    assert [s.block_evals for s in outline.stages] == [1530, 4608, 12544]
    assert [s.tiles for s in outline.stages] == [1, 18, 196]
    assert [s.calls for s in outline.stages] == [255, 64, 32]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": "full", "window": "smooth"},
        {"cache": False, "overlap": "none"},
        {"solver": ("dpmpp_2m", "euler"), "phases": "alternate", "steps": (6, 4, 3)},  # as the presets sample
        *({"solver": (name,), "steps": (8, 8, 8)} for name in ("heun", "euler", "ddim", "ancestral", "dpmpp_2m")),
    ],
)
def test_an_oracle_network_recovers_a_known_video_through_the_whole_cascade(options, monkeypatch):
    """The network's output replaced by the exact target of a known video, tile by tile, at every noise level."""
    family = tiny_family()
    truth = torch.rand(1, 3, *family.config.video, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cascade = cascade_of(family, (0,), (1,), **options)

    def call(branch, tiles, noisy, rows, sigma):
        form, grid = family.levels[branch.level], tiles.grid
        clean = grid.gather(level_video(truth, family.pyramid, branch.level))[rows % len(grid)]
        eps = (noisy - clean / form.scale) / sigma
        torch.testing.assert_close(corrupt(clean, eps, sigma, form.scale), noisy, atol=1e-3, rtol=1e-4)
        return form.denoised(noisy, form.target(clean, eps, sigma), sigma), torch.zeros(len(rows), 6, 16)

    monkeypatch.setattr(Branch, "_call", call)
    for level in range(3):
        only = cascade_of(family, (0,), (1,), level=level, **options)
        video = run_plan(only.stages(), (0,), "cpu")
        torch.testing.assert_close(video, level_video(truth, family.pyramid, level), atol=2e-4, rtol=0)
    assert cascade.stop == 2


@pytest.mark.parametrize("options", [{}, {"phases": "alternate"}, {"overlap": "full", "window": "smooth"}])
def test_a_plain_loop_over_tiles_gives_the_same_video(options):
    """The baseline that the benchmark of sampling is beside."""
    family = tiny_family()
    batched = sample(family, [0, 3], [1, 2], **options)
    with plain_tiles():
        looped = sample(family, [0, 3], [1, 2], **options)
    torch.testing.assert_close(looped, batched, atol=1e-5, rtol=0)


def test_self_conditioning_feeds_each_tiles_own_latents_back(monkeypatch):
    family = tiny_family(self_conditioning=0.9)
    fed = []
    original = type(family.denoiser).level_forward

    def watch(net, level, *args, latents_BKZ=None, **kwargs):
        out: LevelOutput = original(net, level, *args, latents_BKZ=latents_BKZ, **kwargs)
        fed.append((level, latents_BKZ, out.latents))
        return out

    monkeypatch.setattr(type(family.denoiser), "level_forward", watch)
    sample(family, [0], [1], solver=("euler",), request={"size": (16, 16)})
    level_0 = [entry for entry in fed if entry[0] == 0]
    assert level_0[0][1] is None
    for before, after in itertools.pairwise(level_0):
        assert torch.equal(after[1], before[2])
    first_of_level_1 = next(entry for entry in fed if entry[0] == 1)
    assert first_of_level_1[1] is None


@pytest.mark.parametrize(
    ("request_", "options", "shape"),
    [
        ({}, {}, (8, 32, 32)),
        ({"size": (16, 16)}, {}, (4, 16, 16)),
        ({"frames": 2}, {}, (2, 32, 32)),
        ({"frames": 4, "size": (16, 16)}, {}, (4, 16, 16)),
        ({}, {"level": 0}, (2, 8, 8)),
        ({"size": (16, 16)}, {"level": 1}, (4, 16, 16)),
    ],
)
def test_sizes_lengths_and_levels(request_, options, shape):
    family = tiny_family()
    video = sample(family, [0], [0], request=request_, **QUICK, **options)
    assert video.shape == (1, 3, *shape)
    assert torch.isfinite(video).all()


@pytest.mark.parametrize(
    ("labels", "request_", "options", "message"),
    [
        ((4,), {}, {}, "label 4"),
        ((-2,), {}, {}, "label -2"),
        ((0, 1), {}, {}, "2 labels for 1 seeds"),
        ((0,), {"prompts": ("a cat",)}, {}, "text"),
        ((0,), {"size": (30, 30)}, {}, "30x30"),
        ((0,), {"frames": 9}, {}, "9 frames"),
        ((0,), {}, {"level": 3}, "level 3"),
        ((0,), {"size": (16, 16)}, {"level": 2}, "level 2"),
        ((0,), {}, {"solver": ("rk45",)}, "rk45"),
        ((0,), {}, {"sigma_min": (0.1, 1e3)}, "sigma_min of 1000 is not below"),
    ],
)
def test_impossible_requests_are_config_errors(labels, request_, options, message):
    with pytest.raises(ConfigError, match=message):
        cascade_of(tiny_family(), (0,), labels, request=request_, **options).outline()


def test_a_class_asked_of_a_model_without_classes_is_an_error():
    family = tiny_family(condition={"kind": "none"})
    assert sample(family, [0], **QUICK).shape == (1, 3, 8, 32, 32)
    with pytest.raises(ConfigError, match="without classes"):
        sample(family, [0], [1], **QUICK)


def test_clipping_keeps_estimates_in_range():
    family = tiny_family()
    loud = sample(family, [0], [1], **QUICK)
    clipped = sample(family, [0], [1], clip=True, **QUICK)
    assert loud.abs().max() > 1
    assert clipped.abs().max() <= 1 + 1e-6
