"""Growing a model: level 0 bit for bit, live gradients, kept optimiser state, provenance, exact resume, refusals."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.errors import ConfigError, IncompatibleCheckpoint, NoCheckpoint, StoreMismatch
from hpdm_core.families.hpdm.family import HpdmFamily
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.weights import load_model, read_header
from hpdm_core.rng import BatchStreams
from hpdm_core.training.finetune import finetune, finetune_config, plan_finetuning
from hpdm_core.training.origin import open_origin
from hpdm_core.training.run import train
from hpdm_core.training.source import StoreSource, fitted
from tests.support.growing import ONE, THREE, TWO, make_store, preset_file
from tests.support.tiny_hpdm import random_batch, random_inputs, sample, tiny_family, tiny_model
from tests.support.toy import read_log, state_hash, toy_config

WEIGHTS = "checkpoints/step_00000004/weights.safetensors"
TEXT = "{kind: text, text: {mode: joint, width: 16, layers: 1, heads: 2, context_length: 16}}"
STILL = ("train.optimizer.lr=1e-30", "train.optimizer.weight_decay=0", "train.max_steps=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a store and finished runs `one` and `two`, of one and two levels."""
    folder = tmp_path_factory.mktemp("grow")
    make_store(folder / "store")
    for name, model in (("one", ONE), ("two", TWO), ("three", THREE)):
        file = preset_file(folder, name, model)
        if name != "three":
            train(load_run_config(file), folder / "store", folder / name, device="cpu")
    return folder


def grown(origin, config):
    """A family of `config` with real weights, grown from `origin`; returns it and what was done."""
    torch.manual_seed(5)
    family = build_family(config).eval()
    return family, origin.grow(family)


def base_of(place, name):
    """The trained base in memory of its own: tensors mapped from a file at odd addresses round otherwise."""
    model = load_model(place / name)
    family = build_family(model.config).eval()
    family.load_state_dict(model.family.state_dict())
    return family


def config_of(place, base, *overrides, preset="three", **target):
    return finetune_config(open_origin(place / base), place / f"{preset}.yaml", overrides, **target)


@pytest.mark.parametrize("init", ["default", "identity", "residual"])
@pytest.mark.parametrize("base", ["one", "two"])
def test_level_0_of_the_grown_model_is_the_base_bit_for_bit(place, base, init):
    family, _ = grown(open_origin(place / base), config_of(place, base, f"model.fusion_init={init}"))
    before = base_of(place, base)
    want = sample(before, [3, 4], [0, 7], level=0)
    assert want.std() > 0.01
    assert torch.equal(sample(family, [3, 4], [0, 7], level=0), want)
    # And the joint pass of training, up to the order of sums in larger products.
    z, noise, offsets, condition = random_inputs(family)
    levels = before.pyramid.num_levels
    alone, _ = before.denoiser(z[:levels], noise[:levels], offsets[:, :levels], condition)
    together, _ = family.denoiser(z, noise, offsets, condition)
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=0)


def test_levels_that_enter_where_they_did_stay_as_well(place):
    config = config_of(place, "two", "model.levels_per_block=[1,1,2,3]")
    family, growth = grown(open_origin(place / "two"), config)
    base = base_of(place, "two")
    for model in (base, family):
        # A level's frames lie at other shares of a longer video: its positions do change.
        for block in model.denoiser.blocks[2:]:
            block.fusion.position.data.zero_()
    assert torch.equal(sample(family, [1], [2], level=1), sample(base, [1], [2]))
    assert [part.status for part in growth.parts[:3]] == ["reused", "reused", "new"]


@pytest.mark.parametrize("init", ["default", "identity"])
def test_a_new_level_starts_as_the_base_on_its_own_patch(place, init):
    """Identity on own features, zero on context: what the base makes of that patch in the blocks it passes."""
    family, _ = grown(open_origin(place / "one"), config_of(place, "one", f"model.fusion_init={init}"))
    net, base = family.denoiser, load_model(place / "one").family.denoiser
    fusion = net.blocks[2].fusion
    assert torch.equal(fusion.own.weight, torch.eye(len(fusion.own.weight)))
    assert not fusion.context.weight.any()
    assert not fusion.position.any()
    assert not fusion.own.bias.any()
    assert torch.equal(net.stem.level, base.stem.level.expand(3, -1))
    z, noise, offsets, condition = random_inputs(family)
    together, _ = net(z, noise, offsets, condition)
    x, y = base._embed(z[1:2], None), base._condition(noise[1:2], condition)
    latents = base._start(None, 1, 2)
    for block in base.blocks[1:]:
        x, latents = block(x, latents, y)
    torch.testing.assert_close(together[1:2], base._output(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["identity", "residual"])
def test_the_fusions_have_gradients_from_the_first_step(place, init):
    family, _ = grown(open_origin(place / "one"), config_of(place, "one", f"model.fusion_init={init}"))
    family.losses("denoiser", random_batch(family, [0, 1, 2]), BatchStreams(0, [0, 1, 2])).total.backward()
    fused = [block.fusion for block in family.denoiser.blocks if block.fusion is not None]
    assert len(fused) == 3
    for fusion in fused:
        for name, parameter in fusion.named_parameters():
            assert parameter.grad.abs().max() > 0, name
    assert (family.denoiser.stem.level.grad.abs().amax(1) > 0).all()


def test_what_is_new_and_what_is_not_adds_up(place):
    for base, new_fusions in (("one", [1, 2, 3]), ("two", [1])):
        family, growth = grown(open_origin(place / base), config_of(place, base))
        d = family.config.token_dim
        levels = 3 - open_origin(place / base).config.model.pyramid.num_levels
        assert growth.new == {
            "denoiser.stem.level": levels * d,
            **{f"denoiser.blocks.{b}.fusion": 2 * d * d + d + 3 * d for b in new_fusions},
        }
        assert growth.reused + sum(growth.new.values()) == sum(p.numel() for p in family.parameters())
        assert growth.left_out == {}
    assert growth.block_evals == (6, 8)
    parts = {part.name: (part.status, part.note) for part in growth.parts}
    assert parts["level 1"] == ("moved", "4x16x16, blocks 2 to 4, skips 1; entered at block 3 in the base")
    assert parts["level 2"] == ("new", "8x32x32, block 4, skips 3")
    assert parts["block 3"][1] == "2 of 3 levels, with its fusion"


def test_a_fusion_without_a_place_is_left_out(place):
    config = config_of(place, "two", "model.levels_per_block=[1,1,1,3]")
    _, growth = grown(open_origin(place / "two"), config)
    assert list(growth.left_out) == ["denoiser.blocks.2.fusion"]
    assert sum(growth.left_out.values()) == 2 * 32 * 32 + 4 * 32


def test_the_plan_needs_no_memory_and_says_the_same(place):
    origin, config = open_origin(place / "one"), config_of(place, "one")
    plan = plan_finetuning(origin, config, place / "store")
    _, growth = grown(origin, config)
    assert plan.growth == growth
    assert plan.before.size == (8, 8)
    assert plan.training.sampling.size == (32, 32)
    assert plan.trained == plan.training.parameters
    # All but the fusions, and the level table, whose shape has changed.
    assert plan.moments == plan.trained - sum(growth.new.values()) - config.model.token_dim
    bare = shutil.copy(place / "one" / WEIGHTS, place / "bare.safetensors")
    assert plan_finetuning(open_origin(bare), config, None).moments == 0


def test_weights_averages_moments_and_provenance_come_from_the_base(place, tmp_path):
    """One step that moves nothing shows where a fine-tuning starts."""
    base = load_file(place / "one" / WEIGHTS)
    (base_state,) = (load_file(f) for f in (place / "one/checkpoints/step_00000004/state").iterdir())
    # Betas of nearly 1 keep the moments as they were.
    still = [*STILL, "train.optimizer.betas=[0.99999999,0.99999999]"]
    origin = open_origin(place / "one")
    result = finetune(origin, config_of(place, "one", *still), place / "store", tmp_path / "run", device="cpu")
    (state,) = (load_file(f) for f in (result.weights.parent / "state").iterdir())
    kept = [name for name in base if name != "denoiser.stem.level"]
    assert len(kept) > 50
    after = load_file(result.weights)
    for name in kept:
        assert torch.equal(after[name], base[name]), name
        assert torch.equal(state[f"model/{name}"], base[name]), name
        assert torch.equal(state[f"ema/half_life/{name}"], base[name]), name
        for moment in ("exp_avg", "exp_avg_sq"):
            key = f"optim/denoiser/{name}/{moment}"
            torch.testing.assert_close(state[key], base_state[key], atol=1e-7, rtol=1e-5)
        assert state[f"optim/denoiser/{name}/step"] == 5
    assert state["optim/denoiser/denoiser.blocks.0.rin.read.out.weight/exp_avg"].abs().max() > 1e-5
    assert state["optim/denoiser/denoiser.stem.level/step"] == 1
    digest = hashlib.sha256((place / "one" / WEIGHTS).read_bytes()).hexdigest()
    assert read_header(result.weights).base_sha256 == digest
    assert json.loads((result.weights.parent / "state.json").read_text())["state"]["base_sha256"] == digest
    assert read_header(place / "one" / WEIGHTS).base_sha256 == ""


@pytest.mark.parametrize("base", ["one", "two"])
def test_a_stopped_fine_tuning_continues_bit_for_bit(place, tmp_path, base):
    origin, config = open_origin(place / base), config_of(place, base)
    straight = finetune(origin, config, place / "store", tmp_path / "straight", device="cpu")
    assert straight.step == 4
    run = tmp_path / "run"
    finetune(origin, config, place / "store", run, device="cpu")
    shutil.rmtree(run / "checkpoints/step_00000004")
    again = finetune(place / base, config, place / "store", run, device="cpu")
    assert again.resumed
    last = "checkpoints/step_00000004"
    assert state_hash(run / last) == state_hash(tmp_path / "straight" / last)
    assert read_log(run) == read_log(tmp_path / "straight")
    assert read_header(again.weights).base_sha256 == origin.sha256
    video = sample(load_model(run).family, [0], [1])
    assert video.shape == (1, 3, 8, 32, 32)
    assert video.isfinite().all()


def test_every_part_learns(place, tmp_path):
    origin = open_origin(place / "one")
    config = config_of(place, "one", "train.optimizer.warmup_steps=0")
    result = finetune(origin, config, place / "store", tmp_path / "run", device="cpu")
    family, _ = grown(origin, config)
    started, after = family.state_dict(), load_file(result.weights)
    assert not [name for name in after if torch.equal(after[name], started[name]) and "table" not in name]
    assert set(read_log(tmp_path / "run")[-1]["loss_levels"]) == {"level0", "level1", "level2"}


def test_a_run_that_began_otherwise_is_not_continued(place, tmp_path):
    config = config_of(place, "one")
    finetune(place / "one", config, place / "store", tmp_path / "run", device="cpu")
    other = place / "one/checkpoints/step_00000002"
    with pytest.raises(IncompatibleCheckpoint, match="fine-tuned from other weights") as caught:
        finetune(other, config, place / "store", tmp_path / "run", device="cpu")
    assert "--out" in caught.value.hint
    train(config, place / "store", tmp_path / "scratch", device="cpu")
    with pytest.raises(IncompatibleCheckpoint, match="began anew"):
        finetune(place / "one", config, place / "store", tmp_path / "scratch", device="cpu")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.token_dim=64", "model.token_dim|token_dim: 32 there, 64 here"),
        ("model.num_latents=16", "num_latents: 8 there, 16 here"),
        ("model.patch=[4,8,8]", r"patch: \[2, 8, 8\] there"),
        ("model.input_scale=2", "input_scale: 1.0 there, 2.0 here"),
        ("model.self_conditioning=0.9", "self_conditioning"),
        ("model.condition.kind=none", "condition.kind: 'class' there, 'none' here"),
        ("model.levels_per_block=[1,2,3]", "blocks: 4 there, 3 here"),
    ],
)
def test_a_base_of_another_network_is_refused_by_key(place, override, words):
    origin = open_origin(place / "one")
    video = ["model.video=[16,32,32]"] if "patch" in override else []
    config = config_of(place, "one", override, *video)
    with pytest.raises(IncompatibleCheckpoint, match=words):
        plan_finetuning(origin, config, None)


def test_what_only_matters_between_levels_is_free_above_a_base_of_one(place):
    changes = ("model.input_scale_growth=3", "model.coordinates=false", "model.fusion=none")
    for change in changes:
        grown(open_origin(place / "one"), config_of(place, "one", change))
        with pytest.raises(IncompatibleCheckpoint, match=r"input_scale_growth|coordinates|fusion"):
            grown(open_origin(place / "two"), config_of(place, "two", change))


def test_impossible_targets_name_the_nearest_possible_one(place):
    with pytest.raises(ConfigError, match="do not grow into videos of 8x30x40") as caught:
        config_of(place, "one", size=(30, 40))
    assert "8x32x32" in caught.value.hint
    with pytest.raises(ConfigError, match=r"take 4 levels, and model\.levels_per_block ends with 3"):
        config_of(place, "one", size=(64, 64))
    with pytest.raises(ConfigError, match="makes videos of 2x8x8 already") as caught:
        plan_finetuning(open_origin(place / "one"), config_of(place, "one", preset="one"), None)
    assert "4x16x16" in caught.value.hint
    with pytest.raises(ConfigError, match="level 1 would be 2x16x16, and the base's is 4x16x16"):
        plan_finetuning(open_origin(place / "two"), config_of(place, "two", frames=2), None)


def test_a_smaller_target_takes_fewer_levels(place):
    config = config_of(place, "one", frames=4, size=(16, 16))
    assert config.model.video == (4, 16, 16)
    assert config.model.levels_per_block == (1, 2, 2, 2)
    _, growth = grown(open_origin(place / "one"), config)
    assert [part.name for part in growth.parts if part.status == "new"] == ["level 1"]


def test_the_classes_must_be_the_bases(place, tmp_path):
    config, origin = config_of(place, "one"), open_origin(place / "one")
    assert config.model.condition.num_classes == 10
    header = dataclasses.replace(origin.header, classes=origin.header.classes[::-1])
    other = dataclasses.replace(origin, header=header)
    for attempt in (plan_finetuning, lambda *args: finetune(*args, tmp_path / "run")):
        with pytest.raises(StoreMismatch, match="the store's classes are not the base's"):
            attempt(other, config, place / "store")


def test_bases_that_cannot_be_read_are_refused(place, tmp_path):
    with pytest.raises(NoCheckpoint):
        open_origin(tmp_path)
    damaged = tmp_path / "step_00000004"
    shutil.copytree(place / "one/checkpoints/step_00000004", damaged)
    next((damaged / "state").iterdir()).write_bytes(b"")
    with pytest.raises(IncompatibleCheckpoint, match="is damaged"):
        open_origin(damaged)


def test_other_families_say_that_they_do_not_grow(place, tmp_path):
    family = build_family(toy_config())
    with pytest.raises(ConfigError, match="a toy model cannot be grown"):
        family.grow_from({}, toy_config().model)
    with pytest.raises(ConfigError, match="cannot be set to another video size"):
        type(family).target_settings({}, 8, None)
    with pytest.raises(IncompatibleCheckpoint, match="holds a hpdm model, and the preset is toy"):
        open_origin(place / "one").grow(family)


def test_a_table_of_another_shape_is_refused():
    model = tiny_model(video=(2, 8, 8), levels_per_block=(1,) * 6)
    base = HpdmFamily(model).state_dict()
    base["labels.table.weight"] = base["labels.table.weight"][:2]
    with pytest.raises(IncompatibleCheckpoint, match=r"labels\.table\.weight"):
        tiny_family().grow_from(base, model)


def test_a_model_that_reads_text_keeps_the_bases_words(place, tmp_path):
    """The vocabulary comes with the base, not from the captions of the store that it is fine-tuned on."""
    for name, model in (("text1", ONE), ("text2", TWO)):
        preset_file(tmp_path, name, {**model, "condition": TEXT})
    train(load_run_config(tmp_path / "text1.yaml"), place / "store", tmp_path / "base", device="cpu")
    origin = open_origin(tmp_path / "base")
    config = finetune_config(origin, tmp_path / "text2.yaml", ["train.max_steps=1"])
    known = origin.config.model.condition.text.words
    assert len(known) > 10
    assert config.model.condition.text.words == known
    growth = plan_finetuning(origin, config, place / "store").growth
    assert not [name for name in growth.new if "text" in name]
    result = finetune(origin, config, place / "store", tmp_path / "run", device="cpu")
    assert load_model(result.weights).config.model.condition.text.words == known


def test_words_that_a_given_vocabulary_lacks_are_named(place, tmp_path, caplog):
    preset_file(tmp_path, "text1", {**ONE, "condition": TEXT})
    config = load_run_config(tmp_path / "text1.yaml")
    source = StoreSource(place / "store", config)
    words = fitted(config, source).model.condition.text.words
    lost = next(word for word in words if word.isalpha() and len(word) > 3)
    rest = ", ".join(word for word in words if word != lost and word.isalpha())
    assert "never told" not in caplog.text
    fewer = load_run_config(tmp_path / "text1.yaml", [f"model.condition.text.words=[{rest}]"])
    assert fitted(fewer, source) == fewer
    assert f"1 words that the model was never told: {lost}" in caplog.text
