"""Captions and prompts as condition tokens, from a transformer of our own or from a frozen CLIP tower.

`joint`: open_clip's text transformer, small, reading both ways, trained with the denoiser and saved with it.
`frozen`: a pretrained tower that stays outside the model; training reads its states from the store, sampling loads
it when the first prompt comes.

Shapes: B rows, M tokens, W width of the encoder's states, E width of its pooled vector, D width of condition tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpdm_core.conditioning.clip import TextStates, import_open_clip, load_tower, tower_shape, tower_states
from hpdm_core.conditioning.tokenizer import NUM_MARKS, NUMBERS, PAD, Prompt, Vocabulary, tower_numbers
from hpdm_core.config.schema import FrozenText, JointText, TextSection
from hpdm_core.errors import ConfigError


class JointEncoder(nn.Module):
    """A text transformer over the words of `text`. Padding is masked: it changes no state of a real token."""

    def __init__(self, text: JointText) -> None:
        super().__init__()
        if text.vocabulary == "store" and text.words is None:
            raise ConfigError(
                "model.condition.text.words is not set",
                hint="train on a store with captions, which fills it in, or set vocabulary to full",
            )
        self.vocabulary, self.context_length = Vocabulary(text.words), text.context_length
        self.width, self.pooled_width = text.width, None
        self.tower = import_open_clip().transformer.TextTransformer(
            context_length=text.context_length,
            vocab_size=self.vocabulary.size,
            width=text.width,
            heads=text.heads,
            layers=text.layers,
            output_dim=None,
            no_causal_mask=True,
            use_pad_mask=True,
            pad_id=PAD,
        )

    def forward(self, ids_BM: Tensor) -> TextStates:
        """The normalised states of the last layer for padded prompts in numbers."""
        found = self.tower.forward_intermediates(
            ids_BM, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        return TextStates(found["text_intermediates"][0], ids_BM != PAD)

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """int64 [B, context_length], padded, on the device of the weights."""
        rows = self.vocabulary.encode_rows(texts, self.context_length)
        return rows.to(self.tower.positional_embedding.device)

    def read(self, text: str) -> Prompt:
        """What this encoder takes in of `text`, and what it leaves out."""
        return self.vocabulary.encode(text, self.context_length)


class FrozenEncoder:
    """A pretrained tower, loaded at its first use; no module, so that it is neither trained nor saved."""

    def __init__(self, text: FrozenText) -> None:
        if text.width is None or text.pooled_width is None or text.context_length is None:
            raise ConfigError(
                "model.condition.text does not say the widths of its tower",
                hint="train on a store with its embeddings, which fills them in: hpdm cache-text STORE",
            )
        self.text, self.vocabulary = text, Vocabulary(None)
        self.width, self.pooled_width, self.context_length = text.width, text.pooled_width, text.context_length
        self._tower: nn.Module | None = None

    def __call__(self, texts: Sequence[str], device: torch.device | str = "cpu") -> TextStates:
        """States of the layer before the last and pooled vectors, rounded to fp16 as in a store."""
        tower, ids = self.check().to(device), tower_numbers(self.text.arch, texts).to(device)
        # fp32 whatever is around it: what sampling computes is what was stored for training.
        with torch.autocast(torch.device(device).type, enabled=False):
            tokens, pooled = tower_states(tower, ids, tower_shape(self.text.arch).layers)
        # The end of a prompt has the greatest number.
        length_B1 = ids.argmax(dim=1, keepdim=True) + 1
        mask = torch.arange(ids.shape[1], device=ids.device) < length_B1
        return TextStates(tokens.half().float(), mask, pooled.half().float())

    def check(self) -> nn.Module:
        """The tower, loaded and checked at the first call; raises what `load_tower` raises."""
        if self._tower is None:
            self._tower = load_tower(self.text)
        return self._tower

    def read(self, text: str) -> Prompt:
        """What this encoder takes in of `text`, and what it leaves out."""
        return self.vocabulary.encode(text, self.context_length)


class TowerlessEncoder(FrozenEncoder):
    """A frozen encoder without its tower: states of the right shapes and no meaning."""

    def __call__(self, texts: Sequence[str], device: torch.device | str = "cpu") -> TextStates:
        """Zeros, of which every token counts."""
        rows, length = len(texts), self.context_length
        tokens = torch.zeros(rows, length, self.width, device=device)
        mask = torch.ones(rows, length, dtype=torch.bool, device=device)
        return TextStates(tokens, mask, torch.zeros(rows, self.pooled_width, device=device))


class TextTokens(nn.Module):
    """Texts to condition tokens of width D, with a learned null condition for guidance.

    A row without text, or whose text is withheld, has one token: the null one. A frozen encoder's pooled vector is
    one more token, the first.
    """

    def __init__(self, text: TextSection, dim: int) -> None:
        super().__init__()
        self.encoder = JointEncoder(text) if isinstance(text, JointText) else FrozenEncoder(text)
        self.project = nn.Linear(self.encoder.width, dim)
        pooled_width = self.encoder.pooled_width
        self.pooled = None if pooled_width is None else nn.Linear(pooled_width, dim)
        self.null = nn.Parameter(torch.empty(dim))
        for layer in (self.project, self.pooled):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.null, std=1.0)

    def forward(
        self, texts: Sequence[str], stored: Mapping[str, Tensor] | None = None, dropped_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, M, D] and the mask [B, M] of those that count.

        stored: what the loader read for the texts: a frozen encoder's states, or numbers for a joint one. dropped_B:
        rows whose text is withheld.
        """
        states, tells_B = self._read(texts, stored)
        tokens, mask = self.project(states.tokens_BMW), states.mask_BM
        if self.pooled is not None:
            assert states.pooled_BE is not None
            tokens = torch.cat([self.pooled(states.pooled_BE)[:, None], tokens], dim=1)
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        if dropped_B is not None:
            tells_B = tells_B & ~dropped_B.to(tokens.device)
        first_M = torch.arange(tokens.shape[1], device=tokens.device) == 0
        null = self.null.to(tokens.dtype).expand_as(tokens)
        return torch.where(tells_B[:, None, None], tokens, null), torch.where(tells_B[:, None], mask, first_M)

    def rows(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`forward`, text by text: a row's numbers do not depend on the rows beside it."""
        tokens, masks = zip(*(self([text]) for text in texts), strict=True)
        return torch.cat(tokens), torch.cat(masks)

    def read(self, text: str) -> Prompt:
        """What the encoder takes in of `text`, and what it leaves out."""
        return self.encoder.read(text)

    def _read(self, texts: Sequence[str], stored: Mapping[str, Tensor] | None) -> tuple[TextStates, Tensor]:
        """The encoder's states, and which rows say anything, [B]; without a look at `texts` where all is stored."""
        if isinstance(self.encoder, JointEncoder):
            ids = stored[NUMBERS] if stored else self.encoder.numbers(texts)
            return self.encoder(ids), (ids != PAD).sum(dim=1) > NUM_MARKS
        if stored:
            states = TextStates(stored["tokens"].float(), stored["mask"], stored["pooled"].float())
            return states, stored["mask"].any(dim=1)
        tells = torch.tensor([bool(text.strip()) for text in texts], device=self.null.device)
        return self.encoder(texts, self.null.device), tells


def without_towers(module: nn.Module) -> None:
    """Put empty states in the place of pretrained towers below `module`: what it costs around them needs no weights."""
    for part in module.modules():
        if isinstance(part, TextTokens) and isinstance(part.encoder, FrozenEncoder):
            part.encoder = TowerlessEncoder(part.encoder.text)
