"""The arms of the comparison differ in their method and in nothing else."""

import pytest

from benchmarks.families import SHARES, arm_config, parsed, sampling, warm_up
from hpdm_core.training.source import weightless_family

STEPS = {"hpdm": [1000], "pvdm": [350, 50, 600], "mdm": [100, 250, 650]}


@pytest.fixture
def args(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["families", "--out", str(tmp_path)])
    return parsed()


def arm_family(arm, size, args):
    config = arm_config(arm, size, STEPS[arm], args, *warm_up(arm, STEPS[arm]), "model.condition.num_classes=10")
    return config, weightless_family(config)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("arm", SHARES)
def test_an_arm_is_small_and_reads_16_frames(arm, size, args):
    _, family = arm_family(arm, size, args)
    assert 14e6 < sum(p.numel() for p in family.parameters()) < 20e6
    assert {family.view(phase.name).frames for phase in family.phases()} == {16}
    assert all(family.varying(phase.name, args.batch) == "" for phase in family.phases())


def test_all_arms_share_the_optimiser_and_what_surrounds_it(args):
    found = [arm_config(arm, 64, STEPS[arm], args, *warm_up(arm, STEPS[arm])).train for arm in SHARES]
    for key in ("batch_size", "precision", "compile", "cuda_graph", "seed"):
        assert len({str(getattr(train, key)) for train in found}) == 1, key
    for key in ("name", "lr", "schedule", "final_lr_fraction"):
        assert len({getattr(train.optimizer, key) for train in found}) == 1, key


def test_phases_fill_their_steps_and_the_first_warms_up(args):
    for arm, steps in STEPS.items():
        config, family = arm_family(arm, 64, args)
        assert [phase.steps or config.train.max_steps for phase in family.phases()] == steps
        rise = (family.phases()[0].roles[0].optimizer or config.train.optimizer).warmup_steps
        assert rise == (steps[0] if arm == "pvdm" else max(steps)) // 50


@pytest.mark.parametrize("arm", ["pvdm", "mdm"])
def test_samples_are_made_by_the_solver_of_few_steps(arm, args):
    config = arm_config(arm, 64, STEPS[arm], args)
    assert sampling(arm, args)["solver"] == config.sample.fast["solver"]
