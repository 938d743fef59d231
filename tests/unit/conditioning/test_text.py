"""Texts as condition tokens: the joint transformer, its vocabulary, padding, dropping, the null condition."""

import pickle

import numpy as np
import pytest
import torch

from hpdm_core.conditioning.conditions import batch_condition, wanted_condition
from hpdm_core.conditioning.labels import dropped_rows
from hpdm_core.conditioning.text import TextTokens
from hpdm_core.conditioning.tokenizer import FULL_PIECES, PAD, CaptionNumbers, Vocabulary, words_of
from hpdm_core.config.schema import JointText
from hpdm_core.data.window import Batch
from hpdm_core.errors import ConfigError
from hpdm_core.rng import BatchStreams

CAPTIONS = ("a small red circle sliding left over a cloudy navy background", "two checkered stars, camera still")


def joint(**changes):
    values = {"width": 16, "layers": 2, "heads": 2, "context_length": 12, "words": words_of(CAPTIONS), **changes}
    return JointText(mode="joint", **values)


def text_tokens(seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TextTokens(joint(**changes), 20).eval()


def batch_of(captions):
    rows = len(captions)
    return Batch({}, {}, torch.full((rows,), -1), list(captions), list(range(rows)))


def test_the_vocabulary_is_the_words_of_the_captions():
    words = words_of(CAPTIONS)
    assert {"red", "checkered", "two", ","} <= set(words)
    assert list(words) == sorted(set(words))
    vocabulary = Vocabulary(words)
    prompt = vocabulary.encode("A RED circle  over two stars", 12)
    assert prompt.unknown == ()
    assert prompt.cut == ""
    assert prompt.numbers[0] == vocabulary.start
    assert prompt.numbers[-1] == vocabulary.end == vocabulary.size - 1 == max(prompt.numbers)
    assert PAD not in prompt.numbers
    # "checkered" is two pieces, and one word.
    assert len(vocabulary.encode("checkered", 12).numbers) == 4


def test_a_loader_reads_captions_as_the_numbers_that_the_model_would_make():
    told, captions = text_tokens(), [CAPTIONS[0], "", "unobtainium"]
    reader = pickle.loads(pickle.dumps(CaptionNumbers(words_of(CAPTIONS), 12)))
    stored = {"numbers": torch.from_numpy(np.stack([reader.read(caption)["numbers"] for caption in captions]))}
    for own, read in zip(told(captions), told(["", "", ""], stored), strict=True):
        assert torch.equal(own, read)
    tokens, mask = told(captions)
    # A caption of which nothing is known says as little as no caption.
    assert mask.sum(dim=1).tolist() == [mask[0].sum().item(), 1, 1]
    assert torch.equal(tokens[1, 0], told.null)
    assert torch.equal(tokens[2, 0], told.null)


def test_unknown_words_are_left_out_and_named():
    vocabulary = Vocabulary(words_of(CAPTIONS))
    prompt = vocabulary.encode("a red dragon! over a navy unobtainium", 12)
    assert prompt.unknown == ("dragon", "unobtainium")
    assert prompt.numbers == vocabulary.encode("a red over a navy", 12).numbers


def test_what_is_too_long_is_cut_at_a_word_and_shown():
    vocabulary = Vocabulary(words_of(CAPTIONS))
    prompt = vocabulary.encode("a small red circle sliding left", 6)
    assert prompt.cut == "sliding left"
    assert prompt.numbers == vocabulary.encode("a small red circle", 6).numbers
    assert len(prompt.numbers) == 6


def test_the_full_vocabulary_knows_every_word():
    vocabulary = Vocabulary(None)
    assert vocabulary.size == FULL_PIECES + 3
    assert len(vocabulary.numbers) == FULL_PIECES
    assert vocabulary.encode("unobtainium dragons, 3!", 77).unknown == ()


@torch.no_grad()
def test_padding_changes_nothing():
    """A prompt alone, beside a longer one, and with more room: the same states of its own tokens."""
    short, long = text_tokens(context_length=8), text_tokens(context_length=12)
    weights = long.state_dict()
    weights["encoder.tower.positional_embedding"] = weights["encoder.tower.positional_embedding"][:8]
    short.load_state_dict(weights)
    texts = ["a red circle", CAPTIONS[0]]
    alone, alone_mask = short(texts[:1])
    both, both_mask = long(texts)
    assert int(alone_mask.sum()) == int(both_mask[0].sum()) == 5
    assert both_mask[1].sum() > 5
    torch.testing.assert_close(alone[alone_mask], both[0][both_mask[0]])


@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours_bit_for_bit():
    told = text_tokens()
    tokens, mask = told.rows(["a red circle", CAPTIONS[1], ""])
    single, single_mask = told.rows([CAPTIONS[1]])
    assert torch.equal(tokens[1], single[0])
    assert torch.equal(mask[1], single_mask[0])


@torch.no_grad()
def test_no_text_is_the_null_condition():
    told = text_tokens()
    tokens, mask = told(["", "  ", "a red circle"], dropped_B=torch.tensor([False, False, True]))
    assert mask.sum(dim=1).tolist() == [1, 1, 1]
    assert all(torch.equal(row, told.null) for row in tokens[:, 0])
    null = wanted_condition(told, None, None, 2)
    assert torch.equal(null.tokens_BMD, tokens[:2])


def test_word_order_matters():
    told = text_tokens()
    with torch.no_grad():
        one, two = told(["red circle over navy background"])[0], told(["navy circle over red background"])[0]
    assert not torch.allclose(one, two)


def test_texts_are_dropped_at_the_stated_rate_and_by_position():
    share, rows = 0.1, 4000
    dropped = dropped_rows(share, BatchStreams(3, range(rows)))
    assert abs(float(dropped.float().mean()) - share) < 4 * (share * (1 - share) / rows) ** 0.5
    assert torch.equal(dropped[1000:1010], dropped_rows(share, BatchStreams(3, range(1000, 1010))))
    told, captions = text_tokens(), ["a red circle"] * 200
    condition = batch_condition(told, batch_of(captions), share, BatchStreams(3, range(200)))
    assert torch.equal(condition.mask_BM.sum(dim=1) == 1, dropped[:200])


def test_every_weight_learns_even_when_no_row_is_dropped():
    """Distributed training waits for the gradient of every weight."""
    told = text_tokens()
    tokens, mask = told(["a red circle", CAPTIONS[0]])
    (tokens * mask[..., None]).square().sum().backward()
    assert [name for name, p in told.named_parameters() if p.grad is None] == []


def test_without_words_the_remedy_is_named():
    with pytest.raises(ConfigError, match="words is not set") as caught:
        text_tokens(words=None)
    assert "full" in caught.value.hint
    assert text_tokens(words=None, vocabulary="full").encoder.vocabulary.size == FULL_PIECES + 3
