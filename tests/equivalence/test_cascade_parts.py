"""Parts of a cascade: only the first frames, and windows that take turns, against the whole of it."""

from itertools import chain

import pytest
import torch

from hpdm_core.diffusion.guidance import guide
from hpdm_core.errors import ConfigError
from hpdm_core.families.hpdm import cascade as cascade_module
from hpdm_core.families.hpdm.branch import Branch, even_chunk
from hpdm_core.families.hpdm.cascade import Cascade
from hpdm_core.families.hpdm.config import HpdmSample
from hpdm_core.sampling.engine import run_plan
from hpdm_core.sampling.stage import Request
from tests.support.tiny_hpdm import sample, tiny_family

QUICK = {"steps": (2, 1, 1)}
PAPER = {"video": (64, 32, 32), "patch": (16, 8, 8)}


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": "none", "guidance": (2.0,)},
        {"phases": "alternate", "steps": (2, 2, 3)},
        {"cache": False, "overlap": "none"},
        {"solver": ("heun",), "overlap": "none"},
    ],
)
def test_the_first_frames_are_those_of_the_whole_video_bit_for_bit(frames, options):
    family = tiny_family()
    options = {**QUICK, **options}
    whole = sample(family, [3, 4], [1, 2], **options)
    first = sample(family, [3, 4], [1, 2], request={"frames": frames}, **options)
    assert first.shape == (2, 3, frames, 32, 32)
    assert torch.equal(first, whole[:, :, :frames])


def test_16_of_64_frames_take_the_tiles_that_these_frames_need():
    """Of 18 and 196 tiles, 9 and 49: one window in time at every level."""
    family = tiny_family(**PAPER)
    outline = family.outline(Request((0,), (0,), frames=16), HpdmSample(steps=(128, 64, 32)))
    assert [s.tiles for s in outline.stages] == [1, 9, 49]
    assert [s.frames for s in outline.stages] == [16, 16, 16]
    assert [s.block_evals for s in outline.stages] == [1530, 4608 // 2, 12544 // 4]
    assert (outline.frames, outline.size) == (16, (32, 32))
    # One frame more takes the next window of the finest level, whose parent is level 1's first.
    more = family.outline(Request((0,), (0,), frames=17), HpdmSample())
    assert [s.tiles for s in more.stages] == [1, 9, 98]
    assert [s.tiles for s in family.outline(Request((0,), (0,), frames=33), HpdmSample()).stages] == [1, 18, 147]


def test_the_exact_chain_reads_further_than_the_cache():
    """Centred windows of a later tile reach past the parent window, so that more of the coarse level is made."""
    family = tiny_family(**PAPER)
    outline = family.outline(Request((0,), (0,), frames=32), HpdmSample(cache=False, overlap="none"))
    assert [s.frames for s in outline.stages] == [16, 32, 32]


@pytest.mark.parametrize(
    ("options", "message"), [({"overlap": "full"}, "overlap: full"), ({"dynamic_threshold": 0.9}, "dynamic_threshold")]
)
def test_first_frames_that_depend_on_the_rest_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"first 2 of 8.*{message}"):
        Cascade(tiny_family(), Request((0,), (0,), frames=2), HpdmSample(**options))
    Cascade(tiny_family(), Request((0,), (0,), frames=8), HpdmSample(**options))


@pytest.mark.parametrize("given", [{"frames": 9}, {"frames": 64, "size": (16, 16)}])
def test_too_many_frames_are_refused_with_the_possible_lengths(given):
    with pytest.raises(ConfigError, match=f"cannot make {given['frames']} frames") as error:
        Cascade(tiny_family(), Request((0,), (0,), **given), HpdmSample())
    assert "2 frames of 8x8, 4 frames of 16x16, 8 frames of 32x32" in error.value.hint


@pytest.mark.parametrize("request_", [{"frames": 3}, {"frames": 2, "size": (16, 16)}])
def test_level_frames_and_size_go_together(request_):
    video = sample(tiny_family(), [0], [0], request=request_, level=1, **QUICK)
    assert video.shape == (1, 3, request_["frames"], 16, 16)


@pytest.mark.parametrize("overlap", ["spatial", "time", "full"])
def test_alternating_phases_are_deterministic_and_independent_of_the_batch(overlap):
    family = tiny_family()
    options = {"steps": (2, 3, 4), "overlap": overlap, "phases": "alternate"}
    alone = sample(family, [5], [2], **options)
    three = sample(family, [9, 5, 2], [0, 2, 1], **options)
    assert torch.equal(three[1], alone[0])
    assert torch.equal(sample(family, [5], [2], **options), alone)
    assert not torch.equal(sample(family, [5], [2], **{**options, "phases": "together"}), alone)


def test_phases_take_turns_step_by_step(monkeypatch):
    family, seen = tiny_family(), []
    original = Branch.denoise

    def watch(branch, canvas, sigma, grid):
        seen.append((branch.level, grid.phase))
        return original(branch, canvas, sigma, grid)

    monkeypatch.setattr(Branch, "denoise", watch)
    options = HpdmSample(steps=(1, 2, 3), solver=("euler",), phases="alternate")
    cascade = Cascade(family, Request((0,), (0,)), options)
    run_plan(cascade.stages(), (0,), "cpu")
    assert seen == [(0, "all"), (1, "even"), (1, "odd"), (2, "even"), (2, "odd"), (2, "even")]
    outline = cascade.outline()
    assert [s.tile_calls for s in outline.stages] == [1, 2 * (4 + 9), 4 * (16 + 25 + 16)]
    assert outline.stages[2].block_evals == 4 * (16 + 25 + 16) * 2


def test_every_level_tells_what_the_next_one_draws():
    """Then threads can draw it meanwhile; also where only the first frames are made, from the whole canvas' noise."""
    family, seen = tiny_family(), []
    options = HpdmSample(steps=(1,), solver=("euler",), overlap="none")
    cascade = Cascade(family, Request((0,), (0,), frames=4), options)

    def watched():
        plan = cascade.stages()
        stage = next(plan)
        while True:
            seen.append(stage)
            state = yield stage
            try:
                stage = plan.send(state)
            except StopIteration as finished:
                return finished.value

    assert run_plan(watched(), (0,), "cpu").shape[2] == 4
    assert [stage.then for stage in seen] == [*(stage.noise for stage in seen[1:]), None]
    assert seen[-1].noise.shapes["video"] == (3, *family.pyramid.extent(2)) != seen[-1].shapes["video"]


@pytest.mark.parametrize("churn", [0.0, 40.0])
def test_both_evaluations_of_a_step_are_one_turn_however_far_churn_goes(monkeypatch, churn):
    family, seen, weights = tiny_family(), [], []
    original = Branch.denoise

    def watch(branch, canvas, sigma, grid):
        seen.append((branch.level, grid.phase))
        return original(branch, canvas, sigma, grid)

    def watch_guide(clean, free, weight):
        weights.append(weight)
        return guide(clean, free, weight)

    monkeypatch.setattr(Branch, "denoise", watch)
    monkeypatch.setattr(cascade_module, "guide", watch_guide)
    options = HpdmSample(
        steps=(4, 3), solver=("heun",), churn=churn, phases="alternate", level=1, guidance=(3.0,), guidance_low=1.5
    )
    cascade = Cascade(family, Request((0,), (0,)), options)
    run_plan(cascade.stages(), (0,), "cpu")
    turns = ["even"] * 4 + ["odd"] * 4 + ["even"] * 2  # two branches, two evaluations, one in the last step
    assert [phase for level, phase in seen if level == 1] == turns
    assert weights == [3.0, 3.0, 1.5, 1.5, 3.0, 3.0, 1.5, 3.0, 3.0, 1.5, 1.5, 3.0]
    assert [stage.tile_calls for stage in cascade.outline().stages] == [7, 2 * (2 * 4 + 2 * 9 + 4)]


@pytest.mark.parametrize(
    ("tiles", "most", "chunk"),
    [(196, 64, 49), (49, 64, 49), (225, 64, 45), (512, 3, 3), (512, 4, 4), (9, 4, 3), (1, 0, 1), (67, 64, 34)],
)
def test_chunks_are_nearly_even(tiles, most, chunk):
    found = even_chunk(tiles, most)
    assert 1 <= found <= max(most, 1)
    assert -tiles % found <= -tiles % chunk


@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 7, 9])
def test_tiles_keep_their_places_in_a_call_whatever_is_made_beside(chunk):
    """A matrix product on several CPU threads rounds a row by its place."""
    family = tiny_family(fusion="none", coordinates=False)

    def places(seeds):
        """For each tile of the last video at level 1, its place among the rows of its call."""
        options = HpdmSample(overlap="none", chunk=chunk, level=1)
        branch = Branch(Cascade(family, Request(seeds), options), None)
        branch.enter(1)
        (tiles,) = branch.tiles.values()
        calls = [rows.tolist()[:count] for rows, count in tiles.chunks() if len(rows) == tiles.chunk]
        assert list(chain.from_iterable(calls)) == list(range(8 * len(seeds)))
        return [place for call in calls for place, row in enumerate(call) if row >= 8 * (len(seeds) - 1)]

    same = places((0, 1, 2)) == places((2,))
    assert same == (chunk != 9)  # a call of nine holds more than the eight tiles of one video


def test_a_chunk_for_every_level_changes_rounding_only():
    family = tiny_family()
    given = sample(family, [5, 6], [2, 1], chunk=(2, 5, 7), **QUICK)
    torch.testing.assert_close(given, sample(family, [5, 6], [2, 1], **QUICK), atol=5e-5, rtol=0)
