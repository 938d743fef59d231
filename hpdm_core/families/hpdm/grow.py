"""Growing a trained model to more levels: the paper's way to high resolution (HPDM §4, text-to-video).

All levels share their weights, so a model of the coarse levels holds nearly all of a larger one: only the
fusion of blocks that now see more than one level and the new levels' embeddings are new. Level 0 is never
fused, so it stays bit for bit what the base makes. New fusions pass a level's own features on: at step 0 a new
level is about what the base would make of its patch alone (exactly that, with `fusion_init: identity`).
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from hpdm_core.config.load import flat
from hpdm_core.config.schema import Count, Extent, Section
from hpdm_core.errors import ConfigError, IncompatibleCheckpoint
from hpdm_core.families.base import Growth, Part
from hpdm_core.families.hpdm.config import HpdmModel
from hpdm_core.pyramid.geometry import Pyramid, nearest_extent

if TYPE_CHECKING:
    from hpdm_core.families.hpdm.family import HpdmFamily

MAY_DIFFER = {
    *("video", "levels_per_block", "level_weights", "loss_weighting", "fusion_init"),
    *("context_gradient", "position_init"),
    *("condition.drop", "condition.text.path"),
    *("sigma_log_mean", "sigma_log_std", "sigma_min", "sigma_max"),
}
"""Keys of the model section that change neither the weights nor what level 0 computes with them."""

BETWEEN_LEVELS = {"input_scale_growth", "coordinates"}
"""Keys that mean nothing in a base of one level."""

LEVEL_TABLE = "denoiser.stem.level"


class _Geometry(Section):
    """The keys of a model section that a target changes or is measured against."""

    video: tuple[Count, Count, Count]
    patch: tuple[Count, Count, Count]
    levels_per_block: Annotated[tuple[Count, ...], Field(min_length=1)]


def target_settings(section: Mapping[str, Any], frames: int | None, size: tuple[int, int] | None) -> dict[str, Any]:
    """`video` and `levels_per_block` for another target; see `Family.target_settings`.

    Fewer levels than the section's cap its load per block; more are refused, because nobody has said which
    blocks they should use.
    """
    written = {key: section[key] for key in _Geometry.model_fields if key in section}
    try:
        model = _Geometry.model_validate_json(json.dumps(written))
    except ValidationError:
        return {}
    wanted: Extent = (frames or model.video[0], *(size or model.video[1:]))
    nearest: Extent = tuple(nearest_extent(w, p) for w, p in zip(wanted, model.patch, strict=True))  # type: ignore[assignment]
    if nearest != wanted:
        raise ConfigError(
            f"patches of {_by(model.patch)} do not grow into videos of {_by(wanted)}: "
            "every side must be a power of two times the patch's",
            hint=f"the nearest possible video is {_by(nearest)} (frames x height x width)",
        )
    levels, known = Pyramid(wanted, model.patch).num_levels, model.levels_per_block[-1]
    if levels > known:
        example = json.dumps([*model.levels_per_block[:-1], levels], separators=(",", ":"))
        raise ConfigError(
            f"videos of {_by(wanted)} take {levels} levels, and model.levels_per_block ends with {known}",
            hint=f"say how many levels each block processes, {levels} in the last, for example "
            f"--set model.levels_per_block={example}",
        )
    return {"video": list(wanted), "levels_per_block": [min(n, levels) for n in model.levels_per_block]}


@torch.no_grad()
def grow(family: HpdmFamily, tensors: Mapping[str, Tensor], base: HpdmModel) -> Growth:
    """Fill `family` from the smaller model `tensors`; see `Family.grow_from`."""
    model = family.config
    _check_settings(model, base)
    _check_levels(model, base)
    state: dict[str, Tensor] = {name: t.detach() for name, t in family.state_dict().items()}
    for block in family.denoiser.blocks:
        if block.fusion is not None:
            block.fusion.reset("identity" if model.fusion_init == "default" else model.fusion_init)  # type: ignore[operator]
    new, wrong = Counter(), []
    for name, target in state.items():
        source = tensors.get(name)
        if name == LEVEL_TABLE and source is not None and source.shape[1:] == target.shape[1:]:
            # A new level starts as the finest that is known.
            target.copy_(torch.cat([source, source[-1:].expand(len(target) - len(source), -1)]))
            new[name] += (len(target) - len(source)) * target.shape[1]
        elif source is not None and source.shape == target.shape:
            target.copy_(source)
        elif source is None and ".fusion." in name:
            new[name.partition(".fusion.")[0] + ".fusion"] += target.numel()
        else:
            wrong.append(name)
    if wrong:
        raise IncompatibleCheckpoint(
            f"the base's weights do not fit: {len(wrong)} tensors are absent or of another shape, "
            f"the first are {', '.join(wrong[:3])}"
        )
    left_out = Counter()
    for name in tensors.keys() - state.keys():
        left_out[name.partition(".fusion.")[0] + ".fusion" if ".fusion." in name else name] += tensors[name].numel()
    return Growth(
        parts=(*_level_parts(model, base), *_block_parts(model, base)),
        reused=sum(t.numel() for t in state.values()) - new.total(),
        new=dict(new),
        left_out=dict(sorted(left_out.items())),
        block_evals=(sum(base.levels_per_block), sum(model.levels_per_block)),
    )


def _check_settings(model: HpdmModel, base: HpdmModel) -> None:
    """IncompatibleCheckpoint listing the settings that would change what the base's weights mean."""
    free = MAY_DIFFER | (BETWEEN_LEVELS if base.pyramid.num_levels == 1 else set())
    old, new = flat(base.model_dump(mode="json")), flat(model.model_dump(mode="json"))
    if base.pyramid.num_levels == 1 and "shallow" not in (model.fusion, base.fusion):
        free = free | {"fusion"}
    changed = [key for key in sorted(old.keys() | new.keys()) if key not in free and old.get(key) != new.get(key)]
    listed = [f"{key}: {reprlib.repr(old.get(key))} there, {reprlib.repr(new.get(key))} here" for key in changed]
    if len(base.levels_per_block) != len(model.levels_per_block):
        listed.append(f"blocks: {len(base.levels_per_block)} there, {len(model.levels_per_block)} here")
    if listed:
        raise IncompatibleCheckpoint(
            f"the base cannot be grown into this preset: {'; '.join(listed)}",
            hint="take a preset that differs from the base's only in model.video and model.levels_per_block",
        )


def _check_levels(model: HpdmModel, base: HpdmModel) -> None:
    """ConfigError unless the base's levels are the first of more levels."""
    old, new = base.pyramid, model.pyramid
    reach = min(old.num_levels, new.num_levels)
    apart = [level for level in range(reach) if old.extent(level) != new.extent(level)]
    if apart:
        raise ConfigError(
            f"level {apart[0]} would be {_by(new.extent(apart[0]))}, and the base's is {_by(old.extent(apart[0]))}",
            hint=f"the next possible video is {_by(_doubled(base))} (frames x height x width)",
        )
    if new.num_levels <= old.num_levels:
        raise ConfigError(
            f"the base makes videos of {_by(base.video)} already, and the target is {_by(model.video)}",
            hint=f"the next possible video is {_by(_doubled(base))} (frames x height x width)",
        )


def _level_parts(model: HpdmModel, base: HpdmModel) -> Iterable[Part]:
    """One part per level of the grown model."""
    last = len(model.levels_per_block)
    for level, first in enumerate(model.first_blocks):
        blocks = f"blocks {first + 1} to {last}" if first + 1 < last else f"block {last}"
        note = f"{_by(model.pyramid.extent(level))}, {blocks}" + (f", skips {first}" if first else "")
        status = "new"
        if level < base.pyramid.num_levels:
            before = base.first_blocks[level]
            status = "reused" if before == first else "moved"
            note += "" if before == first else f"; entered at block {before + 1} in the base"
        yield Part(f"level {level}", status, note)


def _block_parts(model: HpdmModel, base: HpdmModel) -> Iterable[Part]:
    """One part per block; they differ in what happens to the fusion before them."""
    for index, (before, now) in enumerate(zip(base.levels_per_block, model.levels_per_block, strict=True)):
        fusion = {
            (False, False): "no fusion: level 0 alone",
            (False, True): "its fusion is new and passes each level on as it is",
            (True, True): "with its fusion",
            (True, False): "its fusion is left out",
        }[before > 1, now > 1]
        yield Part(f"block {index + 1}", "reused", f"{now} of {model.pyramid.num_levels} levels, {fusion}")


def _doubled(base: HpdmModel) -> Extent:
    """The video one level above the base, growing the axes that grew last, or all of a single level."""
    levels = base.pyramid.num_levels
    ratio = base.pyramid.ratio(levels - 1) if levels > 1 else (2, 2, 2)
    return tuple(v * r for v, r in zip(base.video, ratio, strict=True))  # type: ignore[return-value]


def _by(extent: Iterable[int]) -> str:
    return "x".join(map(str, extent))
