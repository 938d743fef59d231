"""A pretrained tower: loaded from a file as a user would, every silent trap of open_clip an error."""

import os
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from hpdm_core.conditioning.clip import load_tower, tower_config, tower_shape
from hpdm_core.conditioning.text import FrozenEncoder, TextTokens
from hpdm_core.conditioning.tokenizer import tower_numbers
from hpdm_core.config.schema import FrozenText
from hpdm_core.data.embeddings import FOLDER, EncoderIdentity, find_embeddings, write_embeddings
from hpdm_core.data.prepare import PrepareOptions, prepare_store
from hpdm_core.data.store import VideoStore
from hpdm_core.errors import ConfigError, DataError, IncompatibleCheckpoint, StoreMismatch, WeightsMissing
from hpdm_core.nn.tensor_files import file_sha256
from hpdm_core.training.text_cache import cache_text
from tests.support.tiny_clip import ARCH, CONTEXT, LAYERS, POOLED, WIDTH, register, save_tower

TEXTS = ["a red circle", "two blue stars over a navy background"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the tower as safetensors and as a PyTorch file; other architectures are registered."""
    folder = tmp_path_factory.mktemp("clip")
    register(folder)
    register(folder, f"{ARCH}-quickgelu")
    register(folder, f"{ARCH}-wide", width=32)
    register(folder, f"{ARCH}-hf", hf_tokenizer_name="some/model")
    save_tower(folder / "tower.safetensors")
    save_tower(folder / "tower.pt")
    save_tower(folder / "openai.pt", marks=True)
    return folder


def frozen(path, **changes):
    values = {"arch": ARCH, "quick_gelu": False, "path": str(path), "sha256": None, **changes}
    values["sha256"] = values["sha256"] or (file_sha256(path) if path.is_file() else "0" * 64)
    return FrozenText(mode="frozen", width=WIDTH, pooled_width=POOLED, context_length=CONTEXT, **values)


@torch.no_grad()
def test_pooled_vectors_are_open_clips_own(files):
    model = save_tower(files / "same.safetensors")
    states = FrozenEncoder(frozen(files / "same.safetensors"))(TEXTS)
    expected = model.eval().encode_text(tower_numbers(ARCH, TEXTS))
    torch.testing.assert_close(states.pooled_BE, expected, atol=2e-3, rtol=2e-3)
    assert states.tokens_BMW.shape == (2, CONTEXT, WIDTH)
    # start, words, end
    assert states.mask_BM.sum(dim=1).tolist() == [5, 9]


@torch.no_grad()
def test_token_states_are_of_the_layer_before_the_last(files):
    text = frozen(files / "tower.safetensors")
    tower, ids = load_tower(text), tower_numbers(ARCH, TEXTS)
    x = tower.token_embedding(ids) + tower.positional_embedding
    for block in list(tower.transformer.resblocks)[: LAYERS - 1]:
        x = block(x, attn_mask=tower.attn_mask)
    torch.testing.assert_close(FrozenEncoder(text)(TEXTS).tokens_BMW, tower.ln_final(x), atol=2e-3, rtol=2e-3)


def test_both_file_formats_hold_the_same_tower(files):
    one, two = (FrozenEncoder(frozen(files / name))(TEXTS) for name in ("tower.safetensors", "tower.pt"))
    assert torch.equal(one.tokens_BMW, two.tokens_BMW)


def test_quick_gelu_changes_the_result(files):
    plain = FrozenEncoder(frozen(files / "tower.pt"))(TEXTS)
    quick = FrozenEncoder(frozen(files / "tower.pt", quick_gelu=True))(TEXTS)
    assert not torch.allclose(plain.tokens_BMW, quick.tokens_BMW, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"sha256": "a" * 64}, IncompatibleCheckpoint, "another file"),
        ({"arch": f"{ARCH}-wide"}, IncompatibleCheckpoint, f"not the text tower of {ARCH}-wide"),
        ({"arch": f"{ARCH}-quickgelu"}, ConfigError, "architecture with QuickGELU"),
        ({"arch": f"{ARCH}-hf"}, ConfigError, "transformers package"),
        ({"arch": "hpdm-test-VIT"}, ConfigError, "no architecture"),
        ({"arch": "hf-hub:someone/model"}, ConfigError, "downloaded"),
    ],
)
def test_what_open_clip_forgives_is_an_error(files, changes, error, words):
    with pytest.raises(error, match=words) as caught:
        load_tower(frozen(files / "tower.safetensors", **changes))
    assert caught.value.hint


def test_openais_files_need_quick_gelu(files):
    with pytest.raises(ConfigError, match="OpenAI's files"):
        load_tower(frozen(files / "openai.pt"))
    assert load_tower(frozen(files / "openai.pt", quick_gelu=True)).training is False


def test_a_tag_is_not_a_file_and_half_a_file_is_refused(files, tmp_path):
    with pytest.raises(WeightsMissing, match="no weights"):
        load_tower(frozen(tmp_path / "openai"))
    torch.save({"text_projection": torch.zeros(WIDTH, POOLED)}, tmp_path / "half.pt")
    with pytest.raises(IncompatibleCheckpoint, match="missing"):
        load_tower(frozen(tmp_path / "half.pt"))
    (tmp_path / "noise.pt").write_bytes(b"not tensors")
    with pytest.raises(IncompatibleCheckpoint, match="cannot be read"):
        load_tower(frozen(tmp_path / "noise.pt"))


def test_a_tower_elsewhere_is_found_by_name(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HPDM_WEIGHTS", str(files))
    text = frozen(files / "tower.pt").model_copy(update={"path": str(tmp_path / "gone" / "tower.pt")})
    assert load_tower(text) is not None


def test_sizes_without_building():
    assert tower_shape("ViT-L-14") == (768, 768, 77, 12)
    assert tower_config("ViT-B-32")["embed_dim"] == 512


def test_the_tower_is_neither_trained_nor_saved(files):
    told = TextTokens(frozen(files / "tower.pt"), 20)
    tokens, mask = told.rows(TEXTS)
    assert tokens.shape == (2, 1 + CONTEXT, 20)
    # the pooled vector is one more token
    assert mask.sum(dim=1).tolist() == [6, 10]
    assert sorted(told.state_dict()) == ["null", "pooled.bias", "pooled.weight", "project.bias", "project.weight"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return VideoStore.open(make_store(tmp_path_factory.mktemp("data") / "store"))


def make_store(path):
    from hpdm_core.data.clip import Recipe
    from hpdm_core.data.sources.base import SourceOptions
    from hpdm_core.data.sources.detect import scan_source

    scan = scan_source(SourceOptions(kind="synthetic", num_clips=4, num_frames=2))
    prepare_store(scan, path, Recipe(sizes=((16, 16),), codec="raw"), PrepareOptions(workers=1))
    return path


def test_embeddings_beside_the_store_are_what_the_tower_says(files, store):
    made = cache_text(store.path, arch=ARCH, path=files / "tower.pt", quick_gelu=False, device="cpu")
    stamp = (made.folder / "tokens.f16").stat().st_mtime_ns
    again = cache_text(store.path, arch=ARCH, path=files / "tower.pt", quick_gelu=False, device="cpu")
    assert (again.folder / "tokens.f16").stat().st_mtime_ns == stamp
    found = find_embeddings(store, {"arch": ARCH, "quick_gelu": False})
    told = TextTokens(frozen(files / "tower.pt"), 20)
    for clip in store.clips:
        (caption,) = clip.captions
        stored = {name: torch.from_numpy(a)[None] for name, a in found.read(caption).items()}
        live = told.encoder([caption])
        assert torch.equal(stored["mask"], live.mask_BM)
        torch.testing.assert_close(
            stored["tokens"].float()[live.mask_BM], live.tokens_BMW[live.mask_BM], atol=2e-3, rtol=2e-3
        )
        with torch.no_grad():
            near, far = told([caption], stored)[0][told([caption])[1]], told([caption])[0][told([caption])[1]]
        torch.testing.assert_close(near, far, atol=5e-3, rtol=5e-3)
    assert not found.read("")["mask"].any()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["tokens.f16", "starts.npy", "pooled.npy"])
def test_a_full_disk_names_the_file_and_leaves_no_part(name, tmp_path):
    store = VideoStore.open(make_store(tmp_path / "store"))
    identity = EncoderIdentity(ARCH, "0" * 64, False, "tower.pt", WIDTH, POOLED, CONTEXT)
    kept = []

    def encode(captions):
        (folder,) = (store.path / FOLDER).iterdir()
        kept.append(folder)
        if name != "tokens.f16":
            (folder / name).symlink_to("/dev/full")
        for _ in captions:
            yield np.zeros((3, WIDTH), np.float16), np.zeros(POOLED, np.float16)

    full = nullcontext()
    if name == "tokens.f16":  # it is open before the first caption is read
        full = patch.object(Path, "open", lambda path, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), mode))
    with full, pytest.raises(OSError, match="No space left") as caught:
        write_embeddings(store, identity, encode)
    assert caught.value.filename == str(kept[0] / name)
    assert not kept[0].exists()


def test_other_embeddings_are_not_taken_for_these(files, store):
    cache_text(store.path, arch=ARCH, path=files / "tower.safetensors", quick_gelu=True, device="cpu")
    with pytest.raises(StoreMismatch, match="no text embeddings") as caught:
        find_embeddings(store, {"arch": "ViT-L-14", "quick_gelu": True})
    assert "hpdm cache-text" in caught.value.hint
    assert "--quick-gelu" in caught.value.hint
    with pytest.raises(StoreMismatch):
        find_embeddings(store, {"arch": ARCH, "quick_gelu": True, "sha256": "b" * 64})
    save_tower(files / "second.safetensors", seed=1)
    cache_text(store.path, arch=ARCH, path=files / "second.safetensors", quick_gelu=True, device="cpu")
    with pytest.raises(StoreMismatch, match="2 such encoders"):
        find_embeddings(store, {"arch": ARCH, "quick_gelu": True})


def test_a_store_that_changed_asks_for_new_embeddings(files, tmp_path):
    path = make_store(tmp_path / "store")
    cache_text(path, arch=ARCH, path=files / "tower.pt", quick_gelu=False, device="cpu")
    changed = VideoStore.open(path)
    changed.fingerprint = "other"
    with pytest.raises(StoreMismatch, match="other clips"):
        find_embeddings(changed, {"arch": ARCH})
    with pytest.raises(IncompatibleCheckpoint, match="another file"):
        cache_text(path, arch=ARCH, path=files / "tower.pt", quick_gelu=False, sha256="c" * 64, device="cpu")
    with pytest.raises(DataError):
        cache_text(tmp_path, arch=ARCH, path=files / "tower.pt", quick_gelu=False, device="cpu")
