"""From a trained model to videos: the Python side of `hpdm sample`.

    from hpdm_core import load_model, sample
    model = load_model("runs/demo")
    videos = sample(model, num=4)

Video k is a function of the model, its options and seed k alone: not of the batch it is made in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpdm_core.conditioning.labels import NULL
from hpdm_core.config.load import parse_config, plain_config
from hpdm_core.config.schema import ConditionSection, SampleSection
from hpdm_core.errors import ConfigError, NumericsError
from hpdm_core.families.prompts import Prompts, prompt_notes, prompts_of, text_tokens
from hpdm_core.families.registry import family_sections
from hpdm_core.families.weights import LoadedModel
from hpdm_core.nn.devices import compile_units, pick_device
from hpdm_core.nn.precision import Bf16Products, autocast, matmul_precision
from hpdm_core.rng import numpy_stream
from hpdm_core.sampling.engine import Progress, run_plan
from hpdm_core.sampling.stage import Outline, Request
from hpdm_core.video import to_uint8

logger = logging.getLogger(__name__)

ALL_CLASSES = "all"


@dataclass(frozen=True)
class Sample:
    """One generated video, uint8 [T, H, W, 3], and what it was asked to be."""

    seed: int
    video: np.ndarray
    label: int | None = None
    class_name: str = ""
    prompt: str = ""


def sample(
    model: LoadedModel,
    *,
    num: int | None = None,
    seeds: Sequence[int] | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> list[Sample]:
    """`iterate_samples` as a list; `num` is short for seeds 0 to num - 1 (default 1).

    progress: draw a bar of solver steps, in a notebook or on a terminal.
    """
    if num is not None and seeds is not None:
        raise ConfigError("give num or seeds, not both")
    wanted = tuple(seeds) if seeds is not None else tuple(range(num or 1))
    if not progress:
        return list(iterate_samples(model, wanted, **kwargs))
    from tqdm.auto import tqdm

    options = {key: value for key, value in kwargs.items() if key in type(model.config.sample).model_fields}
    made = outline(model, frames=kwargs.get("frames"), size=kwargs.get("size"), **options)
    steps = len(wanted) * sum(stage.steps for stage in made.stages)
    with tqdm(desc="sample", total=steps, unit="step") as bar:

        def on_progress(rows: tuple[int, ...], done: Progress) -> None:
            bar.set_postfix_str(f"seed {rows[0]}, {done.stage} {done.step}/{done.steps}", refresh=False)
            bar.update(len(rows))

        return list(iterate_samples(model, wanted, on_progress=on_progress, **kwargs))


def iterate_samples(
    model: LoadedModel,
    seeds: Sequence[int],
    *,
    classes: Sequence[str] = (),
    prompts: Prompts = (),
    negative: str = "",
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    device: torch.device | str | None = None,
    on_progress: Callable[[tuple[int, ...], Progress], None] | None = None,
    **options: Any,
) -> Iterator[Sample]:
    """Make the video of each seed in turn, `batch` at a time.

    classes: names (or "all"); seed k takes classes[k mod len]. Empty: a class drawn from seed k.
    prompts: texts, of which seed k takes prompts[k mod len], or the text by seed. Empty: no condition.
    negative: a text that guidance leads away from; it needs a guidance other than 1.
    frames, size: what to make; None is the model's largest, and fewer frames than it has are its first ones.
    options: keys of the config's `sample` section.
    Raises ConfigError for what the model cannot make, EnvironmentProblem for an absent device.
    """
    device = pick_device(device)
    section = sample_options(model, options)
    labels, texts = labels_of(model, seeds, classes), prompts_of(model, seeds, prompts)
    if negative:
        prompts_of(model, seeds, [negative])
    for note in prompt_notes(model, [*(texts or ()), negative]):
        logger.warning("%s", note)
    model.family.to(device)
    if section.compile:
        compile_units(model.family.compile_units())
    products = Bf16Products(model.family.compile_units(), section.precision)
    for start in range(0, len(seeds), batch):
        rows = slice(start, start + batch)
        request = Request(
            tuple(seeds[rows]),
            None if labels is None else tuple(labels[rows]),
            None if texts is None else tuple(texts[rows]),
            frames=frames,
            size=size,
            device=device,
            negatives=(negative,) * len(seeds[rows]) if negative else None,
        )
        report = None if on_progress is None else _bound(on_progress, request.seeds)
        with products.held():
            pixels = _pixels(model, request, section, report)
        for row, seed in enumerate(request.seeds):
            label = None if request.labels is None else request.labels[row]
            prompt = "" if request.prompts is None else request.prompts[row]
            yield Sample(seed, pixels[row], label, class_name(model, label), prompt)


def _pixels(
    model: LoadedModel, request: Request, section: SampleSection, report: Callable[[Progress], None] | None
) -> np.ndarray:
    """The videos of a request, uint8 [B, T, H, W, 3]. Raises NumericsError where they are no numbers."""
    device = request.device
    with matmul_precision(section.precision), autocast(device, section.precision):
        video = run_plan(model.family.plan(request, section), request.seeds, device, report)
    if not video.isfinite().all():
        raise NumericsError(
            "the model makes pixels that are not finite numbers",
            hint="its weights are damaged or diverged, or guidance is too strong; an earlier checkpoint may serve",
        )
    return to_uint8(video).cpu().numpy()


def outline(model: LoadedModel, *, frames: int | None, size: tuple[int, int] | None, **options: Any) -> Outline:
    """What one video will take: stages, steps, tiles, network calls."""
    conditional = labels_of(model, (0,), ()) is not None
    prompts = None if text_tokens(model) is None else ("any",)
    request = Request((0,), (0,) if conditional else None, prompts, frames=frames, size=size)
    return model.family.outline(request, sample_options(model, options))


def enough_frames(model: LoadedModel, needed: int, **options: Any) -> int | None:
    """How many frames to ask for where only the first `needed` are looked at: None for the whole video.

    The frames are the same either way; fewer are made where the model can make them alone. More than the whole video
    are asked for, in whole clips, of a model that chains clips.
    """
    whole = outline(model, frames=None, size=None, **options).frames
    if needed > whole:
        longer = -(-needed // whole) * whole
        try:
            return outline(model, frames=longer, size=None, **options).frames
        except ConfigError:  # of all other models
            return None
    return needed if needed < whole and model.family.exact_prefix(sample_options(model, options)) else None


def sample_options(model: LoadedModel, changes: dict[str, Any]) -> SampleSection:
    """The model's `sample` section with `changes`; ConfigError names an unknown key or a wrong value."""
    raw = plain_config(model.config)
    raw["sample"].update(changes)
    return parse_config(raw, family_sections, where="sample options").sample


def labels_of(model: LoadedModel, seeds: Sequence[int], classes: Sequence[str]) -> list[int] | None:
    """The class index of each seed; None for a model without classes."""
    condition = getattr(model.config.model, "condition", None)
    if not isinstance(condition, ConditionSection) or condition.kind != "class":
        if classes:
            raise ConfigError("this model is not conditioned on classes", hint="leave the class away")
        return None
    count = condition.num_classes or 0
    if not classes:
        return [int(numpy_stream(seed, "sample/class").integers(count)) for seed in seeds]
    chosen = range(count) if list(classes) == [ALL_CLASSES] else [_class_index(model, name) for name in classes]
    return [chosen[seed % len(chosen)] for seed in seeds]


def class_name(model: LoadedModel, label: int | None) -> str:
    """The name of a class index; empty without one."""
    if label is None or label == NULL:
        return ""
    return model.header.classes[label] if label < len(model.header.classes) else str(label)


def _class_index(model: LoadedModel, name: str) -> int:
    known = model.header.classes
    if name in known:
        return known.index(name)
    if name.isdigit() and int(name) < len(known):
        return int(name)
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
    raise ConfigError(f"the model knows no class {name!r}", hint=f"for example: {', '.join(near)}")


def _bound(
    on_progress: Callable[[tuple[int, ...], Progress], None], seeds: tuple[int, ...]
) -> Callable[[Progress], None]:
    return lambda progress: on_progress(seeds, progress)
