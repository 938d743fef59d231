"""The engine: one row per seed, noise by name and step, progress, plans driven to their end."""

from dataclasses import replace

import pytest
import torch

from hpdm_core.diffusion.schedule import LogNormal
from hpdm_core.sampling.engine import run_plan, run_stage
from hpdm_core.sampling.noise import START, Noise
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Solver, Stage

SHAPES = {"small": (2, 3), "large": (2, 6)}


def shrink(state, sigma, step):
    return {k: u / (1 + sigma**2) for k, u in state.items()}


def stage(name="first", solver="ancestral", steps=4, denoise=shrink):
    sigmas = LogNormal(sigma_max=5.0).grid(steps)
    return Stage(name, SHAPES, denoise, sigmas, Solver(solver), solver_info(solver).calls(steps))


def test_a_row_depends_on_its_seed_alone():
    alone = run_stage(stage(), Noise([7], "cpu"))
    among = run_stage(stage(), Noise([3, 7, 12, 7], "cpu"))
    for k, shape in SHAPES.items():
        assert among[k].shape == (4, *shape)
        assert torch.equal(among[k][1], alone[k][0])
        assert torch.equal(among[k][1], among[k][3])
        assert not torch.equal(among[k][0], among[k][1])


def test_stages_components_and_steps_draw_different_noise():
    first, second = run_stage(stage("first"), Noise([0], "cpu")), run_stage(stage("second"), Noise([0], "cpu"))
    assert not torch.equal(first["small"], second["small"])
    drawn = []

    def record(state, sigma, step):
        drawn.append(state["small"].clone())
        return {k: torch.zeros_like(u) for k, u in state.items()}

    result = run_stage(stage(denoise=record), Noise([0], "cpu"))
    assert torch.equal(result["small"], torch.zeros(1, 2, 3))
    flat = torch.stack([d.flatten() / d.std() for d in drawn])
    assert (flat[0] - flat[1]).abs().max() > 0.1
    assert not torch.equal(first["small"][0], first["large"][0, :, :3])


def test_the_start_is_noise_of_the_first_sigma():
    seen = []

    def record(state, sigma, step):
        seen.append((state["large"], sigma))
        return state

    wide = Stage("w", {"large": (400, 400)}, record, LogNormal().grid(1), Solver("euler"), 1)
    run_stage(wide, Noise([0], "cpu"))
    state, sigma = seen[0]
    assert sigma == 80.0
    assert abs(state.std().item() / 80 - 1) < 0.01


def test_progress_tells_steps_and_calls():
    told = []
    run_stage(stage(solver="heun", steps=3), Noise([0], "cpu"), told.append)
    assert [(p.stage, p.step, p.steps, p.calls) for p in told] == [
        ("first", 1, 3, 2),
        ("first", 2, 3, 2),
        ("first", 3, 3, 1),
    ]


def test_a_plan_receives_each_stages_state_and_its_return_is_the_video():
    received = []

    def plan():
        state = yield stage("first")
        received.append(state)
        state = yield stage("second")
        received.append(state)
        return state["small"] * 2

    video = run_plan(plan(), [1, 2], "cpu")
    assert torch.equal(video, received[1]["small"] * 2)
    assert torch.equal(received[0]["large"], run_stage(stage("first"), Noise([1, 2], "cpu"))["large"])


def test_all_calls_of_a_step_are_told_its_number():
    told = []

    def record(state, sigma, step):
        told.append(step)
        return shrink(state, sigma, step)

    run_stage(stage(solver="heun", steps=3, denoise=record), Noise([0], "cpu"))
    assert told == [0, 0, 1, 1, 2]


def test_options_reach_the_solver():
    quiet = run_stage(stage(solver="ddim"), Noise([0], "cpu"))["small"]
    full = replace(stage(), solver=Solver("ddim", {"eta": 1.0}))
    loud = run_stage(full, Noise([0], "cpu"))["small"]
    assert torch.equal(loud, run_stage(stage(), Noise([0], "cpu"))["small"])
    assert not torch.equal(quiet, loud)


@pytest.fixture
def ahead():
    with Noise([3, 7], "cpu", ahead=True) as noise:
        yield noise


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_noise_drawn_ahead_by_a_thread_is_the_same(ahead):
    plain, drawn = Noise([3, 7], "cpu"), stage().noise
    for step in (START, 0, 1):
        ahead.expect(drawn, step)
    for step in (0, START, 3, 1, 0):  # expected in another order, not at all, and again
        assert same(ahead(drawn, step), plain(drawn, step))
    assert not ahead._coming


def test_a_stage_expects_noise_only_of_a_solver_that_takes_some(ahead):
    told = []
    ahead.expect = lambda drawn, step: told.append((drawn.stage, step))
    run_stage(stage(solver="euler"), ahead)
    assert told == []
    run_stage(stage(steps=4), ahead)  # noise after steps 0, 1 and 2: the last step ends without
    assert told == [("first", 1), ("first", 2)]


def test_the_start_of_the_next_stage_is_drawn_during_this_one(ahead):
    second = stage("second", solver="euler")
    first = replace(stage("first", solver="euler"), then=second.noise)
    run_stage(first, ahead)
    assert list(ahead._coming) == [("second", START)]
    assert same(run_stage(second, ahead), run_stage(second, Noise([3, 7], "cpu")))
    assert not ahead._coming


def test_a_part_of_the_canvas_starts_from_a_part_of_its_noise():
    whole = Stage("w", {"x": (2, 6)}, shrink, LogNormal().grid(1), Solver("euler"), 1)
    part = replace(whole, shapes={"x": (2, 4)}, drawn={"x": (2, 6)})
    assert part.noise == whole.noise
    noise = Noise([5], "cpu")
    assert torch.equal(run_stage(part, noise)["x"], run_stage(whole, noise)["x"][..., :4])
