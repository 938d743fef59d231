"""The text-to-video presets: the paper's values, and bases that grow into them."""

import pytest
import torch

from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.sampling.stage import Request
from hpdm_core.training.conditions import with_placeholders

GROWING = [
    ("t2v-36x64", "t2v-288x512"),
    ("t2v-72x128", "t2v-576x1024"),
    ("t2v-36x64-mini", "t2v-288x512-mini"),
    ("t2v-288x512-mini", "t2v-576x1024-mini"),
]


def weightless(name):
    with torch.device("meta"):
        return build_family(with_placeholders(load_run_config(name)))


@pytest.mark.parametrize(("base", "preset"), GROWING)
def test_each_preset_grows_from_its_base(base, preset):
    small, large = weightless(base), weightless(preset)
    growth = large.grow_from(small.state_dict(), small.config)
    assert growth.reused == sum(p.numel() for p in small.parameters())
    assert growth.left_out == {}
    assert sum(growth.new.values()) < 0.02 * growth.reused


@pytest.mark.parametrize(
    ("name", "video", "patch", "load", "batch", "steps"),
    [
        ("t2v-36x64", (8, 36, 64), (8, 36, 64), (1, 1, 1, 1, 1, 1), 8192, 500_000),
        ("t2v-288x512", (64, 288, 512), (8, 36, 64), (1, 2, 2, 3, 3, 4), 8192, 15_000),
        ("t2v-72x128", (16, 72, 128), (16, 72, 128), (1, 1, 1, 1, 1, 1), 2048, 500_000),
        ("t2v-576x1024", (16, 576, 1024), (16, 72, 128), (4, 4, 4, 4, 4, 4), 2048, 100_000),
    ],
)
def test_the_papers_table(name, video, patch, load, batch, steps):
    config = load_run_config(name)
    model, train = config.model, config.train
    assert (model.video, model.patch, model.levels_per_block) == (video, patch, load)
    assert (train.batch_size, train.max_steps) == (batch, steps)
    assert model.token == (1, 3, 4)
    assert (model.token_dim, model.latent_dim, model.num_latents, model.latent_layers) == (1024, 3072, 768, 4)
    assert (model.condition.kind, model.condition.drop) == ("text", 0.1)
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("lamb", 5e-3, 0.01)
    assert (train.optimizer.warmup_steps, train.optimizer.schedule) == (5000, "cosine")
    assert (train.precision, train.parallel) == ("fp32", "fsdp")
    assert train.ema.half_life_videos == 6000 * batch
    assert config.data.images == "repeat"


@pytest.mark.parametrize("name", ["t2v-36x64-mini", "t2v-288x512-mini", "t2v-576x1024-mini"])
def test_the_small_ones_fit_one_gpu(name):
    config = load_run_config(name)
    assert config.parameters < 100_000_000
    assert config.train.parallel == "ddp"


def test_the_cascade_makes_the_stated_videos():
    for name, levels in (("t2v-288x512", 4), ("t2v-576x1024", 4), ("t2v-576x1024-mini", 5)):
        config, family = load_run_config(name), weightless(name)
        outline = family.outline(Request((0,), prompts=("a dog",)), config.sample)
        assert len(outline.stages) == levels
        assert (outline.frames, *outline.size) == config.model.video
    # The paper's worked example: 15 tiles per axis at full overlap.
    full = load_run_config("t2v-288x512").sample.model_copy(update={"overlap": "full"})
    assert weightless("t2v-288x512").outline(Request((0,), prompts=("a dog",)), full).stages[-1].tiles == 3375


def test_latents_have_heads_of_their_own():
    with torch.device("meta"):
        block = weightless("t2v-36x64").denoiser.blocks[0].rin
    assert block.latent_layers[0].attention.head_dim == 128
    assert (block.read.head_dim, block.write.head_dim) == (64, 64)
