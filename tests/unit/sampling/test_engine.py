"""The engine: one row per seed, noise by name and step, progress, plans driven to their end."""

import torch

from hpdm_core.diffusion.schedule import LogNormal
from hpdm_core.sampling.engine import run_plan, run_stage
from hpdm_core.sampling.noise import START, StageNoise
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Solver, Stage

SHAPES = {"small": (2, 3), "large": (2, 6)}


def shrink(state, sigma, step):
    return {k: u / (1 + sigma**2) for k, u in state.items()}


def stage(name="first", solver="ancestral", steps=4, denoise=shrink):
    sigmas = LogNormal(sigma_max=5.0).grid(steps)
    return Stage(name, SHAPES, denoise, sigmas, Solver(solver), solver_info(solver).calls(steps))


def test_a_row_depends_on_its_seed_alone():
    alone = run_stage(stage(), [7], "cpu")
    among = run_stage(stage(), [3, 7, 12, 7], "cpu")
    for k, shape in SHAPES.items():
        assert among[k].shape == (4, *shape)
        assert torch.equal(among[k][1], alone[k][0])
        assert torch.equal(among[k][1], among[k][3])
        assert not torch.equal(among[k][0], among[k][1])


def test_stages_components_and_steps_draw_different_noise():
    first, second = run_stage(stage("first"), [0], "cpu"), run_stage(stage("second"), [0], "cpu")
    assert not torch.equal(first["small"], second["small"])
    drawn = []

    def record(state, sigma, step):
        drawn.append(state["small"].clone())
        return {k: torch.zeros_like(u) for k, u in state.items()}

    result = run_stage(stage(denoise=record), [0], "cpu")
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
    run_stage(wide, [0], "cpu")
    state, sigma = seen[0]
    assert sigma == 80.0
    assert abs(state.std().item() / 80 - 1) < 0.01


def test_progress_tells_steps_and_calls():
    told = []
    run_stage(stage(solver="heun", steps=3), [0], "cpu", told.append)
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
    assert torch.equal(received[0]["large"], run_stage(stage("first"), [1, 2], "cpu")["large"])


def test_all_calls_of_a_step_are_told_its_number():
    told = []

    def record(state, sigma, step):
        told.append(step)
        return shrink(state, sigma, step)

    run_stage(stage(solver="heun", steps=3, denoise=record), [0], "cpu")
    assert told == [0, 0, 1, 1, 2]


def test_options_reach_the_solver():
    quiet = run_stage(stage(solver="ddim"), [0], "cpu")["small"]
    sigmas = LogNormal(sigma_max=5.0).grid(4)
    loud = run_stage(Stage("first", SHAPES, shrink, sigmas, Solver("ddim", {"eta": 1.0}), 4), [0], "cpu")["small"]
    assert torch.equal(loud, run_stage(stage(), [0], "cpu")["small"])
    assert not torch.equal(quiet, loud)


def test_noise_drawn_ahead_by_a_thread_is_the_same():
    plain = StageNoise(stage(), [3, 7], "cpu")
    with StageNoise(stage(), [3, 7], "cpu", ahead=True) as ahead:
        for step in (START, 0, 1, 3, 2, 0):  # in order, and not
            for name, part in ahead(step).items():
                assert torch.equal(part, plain(step)[name])
        assert ahead._next is not None


def test_noise_is_drawn_ahead_only_for_a_solver_that_takes_some():
    with StageNoise(stage(), [0], "cpu", ahead=True) as noise:
        noise(START)
        assert noise._next is None
        noise(2)  # the last step, which follows, adds none
        assert noise._next is None
