"""CLIPSIM: averaging, preprocessing and captions with a stand-in for the towers; a file that does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from hpdm_core.errors import DataError, IncompatibleCheckpoint, WeightsMissing
from hpdm_core.metrics.clipsim import build_clipsim, clip_preprocess, clipsim_facts, clipsim_observer, read_captions
from hpdm_core.metrics.sources import open_source

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def test_cosine_is_averaged_over_frames():
    def encode(images):
        level = (images * DEVIATION + MEAN).mean(dim=(1, 2, 3))
        return torch.stack([level, 1 - level], dim=1)

    video = np.stack([np.zeros((32, 32, 3)), np.full((32, 32, 3), 255)]).astype(np.uint8)
    observe = clipsim_observer(encode, [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])], "cpu")
    assert observe(0, video)["cosine"] == pytest.approx(0.5, abs=1e-3)
    assert observe(1, video)["cosine"] == pytest.approx(np.sqrt(0.5), abs=1e-3)


@pytest.mark.parametrize("size", [(224, 224), (240, 320), (96, 64)])
def test_preprocessing_is_pillows_bicubic_and_centre_crop(size):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(frame).resize((8, 8)).resize(size[::-1], Image.Resampling.BICUBIC))
    ours = clip_preprocess(torch.from_numpy(smooth.copy())[None])[0] * DEVIATION + MEAN
    scale = 224 / min(size)
    wide = Image.fromarray(smooth).resize((round(size[1] * scale), round(size[0] * scale)), Image.Resampling.BICUBIC)
    left, top = (wide.width - 224) // 2, (wide.height - 224) // 2
    expected = np.asarray(wide.crop((left, top, left + 224, top + 224)))
    assert ours.shape == (3, 224, 224)
    assert np.abs(ours.movedim(0, -1).numpy() * 255 - expected).max() < 2.0


def test_captions(tmp_path):
    np.savez(tmp_path / "v.npz", np.zeros((3, 2, 8, 8, 3), np.uint8))
    source = open_source(tmp_path / "v.npz")
    (tmp_path / "captions.txt").write_text("a cat\na dog\na bird\n\n \n")
    assert read_captions(tmp_path / "captions.txt", source, 3) == ["a cat", "a dog", "a bird"]
    assert read_captions(tmp_path / "captions.txt", source, 2) == ["a cat", "a dog"]
    with pytest.raises(DataError, match="each of 4 videos; there are 3"):
        read_captions(tmp_path / "captions.txt", source, 4)
    (tmp_path / "gap.txt").write_text("a cat\n\na dog\na bird\n")
    with pytest.raises(DataError, match="each of 3 videos; there are 3, and number 2 is blank"):
        read_captions(tmp_path / "gap.txt", source, 3)
    assert read_captions(tmp_path / "gap.txt", source, 1) == ["a cat"]
    with pytest.raises(DataError, match="there are 0"):
        read_captions(None, source, 3)
    with pytest.raises(DataError, match="cannot read captions"):
        read_captions(tmp_path / "absent.txt", source, 3)


def test_what_a_value_depends_on_is_told():
    tensors = {"a": torch.zeros(2), "b": torch.ones(2)}
    facts = clipsim_facts(tensors, ["a cat", "a dog"])
    assert facts == clipsim_facts(dict(reversed(tensors.items())), ["a cat", "a dog"])
    assert facts["captions_sha256"] != clipsim_facts(tensors, ["a dog", "a cat"])["captions_sha256"]
    assert facts["clip_sha256"] != clipsim_facts({**tensors, "b": torch.zeros(2)}, ["a cat"])["clip_sha256"]


def test_missing_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("HPDM_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsMissing, match="ViT-B/32"):
        build_clipsim(None, ["a cat"], "cpu")


@pytest.mark.slow
def test_a_file_that_leaves_tensors_unfilled_is_refused(tmp_path):
    open_clip = pytest.importorskip("open_clip", exc_type=(ImportError, RuntimeError))
    assert "ViT-B-32-quickgelu" in open_clip.list_models()
    torch.save({"visual.proj": torch.zeros(768, 512)}, tmp_path / "clip.pt")
    with pytest.raises(IncompatibleCheckpoint, match=r"not CLIP ViT-B/32: missing"):
        build_clipsim(tmp_path / "clip.pt", ["a cat"], "cpu")
