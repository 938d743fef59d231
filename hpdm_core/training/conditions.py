"""What only the training store knows of a model's condition: classes, words, the encoder of its embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hpdm_core.conditioning.tokenizer import words_of
from hpdm_core.config.schema import ConditionSection, FrozenText, JointText, RunConfig
from hpdm_core.data.embeddings import EncoderIdentity
from hpdm_core.errors import StoreMismatch
from hpdm_core.sampling.stage import Request


def class_condition(config: RunConfig) -> ConditionSection | None:
    """The condition section of a model that is told the class; None for all others."""
    return _condition(config, "class")


def text_condition(config: RunConfig) -> JointText | FrozenText | None:
    """The text section of a model that reads captions; None for all others."""
    condition = _condition(config, "text")
    return None if condition is None else condition.text


def one_video(config: RunConfig) -> Request:
    """The video whose cost is counted: it is told a class or a text where the model is."""
    labels = None if class_condition(config) is None else (0,)
    return Request((0,), labels, None if text_condition(config) is None else ("any",))


def with_classes(config: RunConfig, classes: Sequence[str]) -> RunConfig:
    """`config` with `model.condition.num_classes` taken from the store where it was left null.

    Raises StoreMismatch if the config conditions on classes and the store has none, or another number.
    """
    condition = class_condition(config)
    if condition is None:
        return config
    if not classes:
        raise StoreMismatch(
            "the model is conditioned on classes, and the store has no labels",
            hint="prepare the store from class folders, or set model.condition.kind=none",
        )
    if condition.num_classes is None:
        return _changed(config, num_classes=len(classes))
    if condition.num_classes != len(classes):
        raise StoreMismatch(
            f"the model expects {condition.num_classes} classes, and the store has {len(classes)}",
            hint="leave model.condition.num_classes null to take the store's number",
        )
    return config


def with_vocabulary(config: RunConfig, captions: Iterable[str]) -> RunConfig:
    """`config` with the words of the captions, where its text transformer takes them from the store.

    Raises StoreMismatch for a store without captions.
    """
    text = text_condition(config)
    if not isinstance(text, JointText) or text.vocabulary == "full" or text.words is not None:
        return config
    return _changed(config, text=text.model_copy(update={"words": words_of(captions)}))


def with_encoder(config: RunConfig, encoder: EncoderIdentity) -> RunConfig:
    """`config` with what its frozen text section leaves open taken from the encoder of the store's embeddings."""
    text = text_condition(config)
    assert isinstance(text, FrozenText)
    given = {name: value for name, value in text.model_dump().items() if value is not None}
    known = {name: getattr(encoder, name) for name in FrozenText.model_fields if name != "mode"}
    return _changed(config, text=FrozenText(**{**known, **given}))


def with_placeholders(config: RunConfig) -> RunConfig:
    """`config` with one class, one word or widths of 1 where only a store could say: for counting weights."""
    condition, text = class_condition(config), text_condition(config)
    if condition is not None and condition.num_classes is None:
        return with_classes(config, ["any"])
    if isinstance(text, JointText):
        return with_vocabulary(config, ["any"])
    if isinstance(text, FrozenText):
        return with_encoder(config, EncoderIdentity(text.arch, "0" * 64, text.quick_gelu, "any", 1, 1, 3))
    return config


def encoder_wanted(text: FrozenText) -> dict[str, Any]:
    """What the embeddings of `text` must agree with: everything set but the path, which machines may differ in."""
    return text.model_dump(exclude={"mode", "path"}, exclude_none=True)


def _condition(config: RunConfig, kind: str) -> ConditionSection | None:
    condition = getattr(config.model, "condition", None)
    return condition if isinstance(condition, ConditionSection) and condition.kind == kind else None


def _changed(config: RunConfig, **values: Any) -> RunConfig:
    """`config` with other values in its condition section."""
    condition: ConditionSection = config.model.condition  # type: ignore[attr-defined]
    model = config.model.model_copy(update={"condition": condition.model_copy(update=values)})
    return config.model_copy(update={"model": model})
