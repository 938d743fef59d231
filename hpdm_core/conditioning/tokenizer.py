"""Prompts as numbers: CLIP's byte-pair pieces, all of them or those of a training store's words.

The pieces and their merges come with open_clip. A word that the model was never told is left out of the prompt, and
said; a prompt that is too long is cut, and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpdm_core.conditioning.clip import import_open_clip

PAD = 0
NUM_MARKS = 2
"""Numbers of a prompt that says nothing: its start and its end."""
NUMBERS = "numbers"
"""The name under which a batch carries its captions in numbers."""
FULL_PIECES = 49_406
"""Pieces of CLIP's vocabulary, its start and end marks not counted."""
WORD_END = "</w>"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a model reads it. unknown: words that were left out; cut: the text beyond the model's length."""

    numbers: tuple[int, ...]
    unknown: tuple[str, ...] = ()
    cut: str = ""


class Vocabulary:
    """Pieces as numbers from 1 on; 0 pads, and after the pieces come the start and the end of a prompt.

    known: the words that a model was told, of whose pieces the vocabulary consists; None means all of CLIP's. The
    end has the greatest number, by which CLIP's pooling finds it.
    """

    def __init__(self, known: Sequence[str] | None) -> None:
        self.words = None if known is None else frozenset(known)
        self._pieces = None if known is None else sorted({p for word in known for _, ps in _words(word) for p in ps})
        self.num_pieces = FULL_PIECES if self._pieces is None else len(self._pieces)
        self.start, self.end = self.num_pieces + 1, self.num_pieces + 2

    @property
    def size(self) -> int:
        """How many numbers there are, padding and marks included."""
        return self.num_pieces + 3

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Piece to number."""
        pieces = list(_tokenizer().encoder)[:FULL_PIECES] if self._pieces is None else self._pieces
        return {piece: i for i, piece in enumerate(pieces, start=1)}

    def encode(self, text: str, context_length: int) -> Prompt:
        """`text` with its marks, at most `context_length` numbers. Unknown punctuation is left out without a word."""
        numbers: list[int] = []
        unknown: list[str] = []
        cut: list[str] = []
        for word, pieces in _words(text):
            if self.words is not None and word not in self.words:
                unknown += [word] if any(map(str.isalnum, word)) else []
            elif cut or len(numbers) + len(pieces) > context_length - 2:
                cut.append(word)
            else:
                numbers += [self.numbers[piece] for piece in pieces]
        return Prompt((self.start, *numbers, self.end), tuple(dict.fromkeys(unknown)), " ".join(cut))

    def encode_rows(self, texts: Sequence[str], context_length: int) -> Tensor:
        """int64 [len(texts), context_length], padded."""
        rows = torch.full((len(texts), context_length), PAD)
        for row, text in zip(rows, texts, strict=True):
            numbers = self.encode(text, context_length).numbers
            row[: len(numbers)] = torch.tensor(numbers)
        return rows


class CaptionNumbers:
    """Captions in the numbers of one vocabulary, for the workers of a loader; pickles as what the vocabulary is of."""

    def __init__(self, known: Sequence[str] | None, context_length: int) -> None:
        self._known, self._context_length = known, context_length

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._known)

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionNumbers, (self._known, self._context_length)

    def read(self, caption: str) -> dict[str, np.ndarray]:
        """`numbers`: int64 [context_length], padded."""
        return {NUMBERS: self._vocabulary.encode_rows([caption], self._context_length)[0].numpy()}


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The words of `texts` as the tokenizer splits them, sorted."""
    chunks = sorted({chunk for text in texts for chunk in text.split()})
    return tuple(sorted({word for chunk in chunks for word, _ in _words(chunk)}))


def tower_numbers(arch: str, texts: Sequence[str]) -> Tensor:
    """int64 [len(texts), M]: the numbers that a pretrained CLIP tower reads, cut and zero-padded to its length."""
    return _tower_tokenizer(arch)(list(texts))


@lru_cache(maxsize=2**17)
def _words(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The words of `text` in lower case, each with its pieces. Remembered: captions return every epoch."""
    tokenizer = _tokenizer()
    words: list[tuple[str, tuple[str, ...]]] = []
    pieces: list[str] = []
    numbers: list[int] = []
    for number in tokenizer.encode(text):
        pieces.append(tokenizer.decoder[number])
        numbers.append(number)
        if pieces[-1].endswith(WORD_END):
            words.append((tokenizer.decode(numbers).strip(), tuple(pieces)))
            pieces, numbers = [], []
    return tuple(words)


@cache
def _tower_tokenizer(arch: str) -> Any:
    return import_open_clip().get_tokenizer(arch)


@cache
def _tokenizer() -> Any:
    return import_open_clip().SimpleTokenizer()
