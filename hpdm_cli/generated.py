"""The generated side of `hpdm eval-fvd`: videos on disk, or a model that is sampled from while it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpdm_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hpdm_core.metrics.protocol import Protocol
    from hpdm_core.metrics.sources import VideoSource
    from hpdm_core.sampling.stage import Outline

NO_CAPTIONS = "none: videos of the null condition"
"""What a result says of the captions of a model that reads text and was given none."""


@dataclass(frozen=True)
class Inputs:
    """What some metrics and some generators need beside the videos."""

    tile: str | None = None
    clip_weights: Path | None = None
    prompts: Path | None = None
    level: int | None = None


def open_fake(
    path: Path, protocol: Protocol, device: str, inputs: Inputs
) -> tuple[VideoSource, dict[str, Any], Protocol]:
    """The generated side: videos on disk, or a checkpoint that is sampled from as clips are asked for.

    With what is to be said of it, and the protocol: that of a pyramid level has the level's size and frame stride.
    """
    from hpdm_core.metrics.sources import open_source

    is_model = (
        path.suffix == ".safetensors" or (path / "checkpoints").is_dir() or (path / "weights.safetensors").is_file()
    )
    if is_model:
        return _open_model(path, protocol, device, inputs)
    if inputs.level is not None:
        raise ConfigError(f"--level needs a model to sample from, and {path} is none", hint="give --fake CKPT")
    return open_source(path), {"path": str(path)}, protocol


def _open_model(
    path: Path, protocol: Protocol, device: str, inputs: Inputs
) -> tuple[VideoSource, dict[str, Any], Protocol]:
    """A checkpoint as a source of the protocol's number of videos, from seed 0 on; one that reads text is told it."""
    from hpdm_core.families.generate import enough_frames, iterate_samples, outline, sample_options
    from hpdm_core.families.prompts import text_tokens
    from hpdm_core.families.weights import load_model
    from hpdm_core.metrics.clipsim import read_captions
    from hpdm_core.metrics.protocol import hash_record
    from hpdm_core.metrics.sources import GeneratedSource

    model, count, level = load_model(path), protocol.fake.count, inputs.level
    reads = text_tokens(model) is not None
    texts = read_captions(inputs.prompts, None, count) if reads and inputs.prompts is not None else []
    changes: dict[str, Any] = {} if level is None else {"level": level}
    options = sample_options(model, changes).model_dump(mode="json")
    made = outline(model, frames=None, size=None, **changes)
    span = (protocol.clip.frames - 1) * protocol.fake.stride + 1
    frames = enough_frames(model, span, **changes)
    if protocol.fake.start != "first" and frames is not None and frames < made.frames:
        frames = None  # where in its video a clip begins counts from the end too
    if (frames or made.frames) < span:
        raise DataError(
            f"{path} makes videos of {made.frames} frames; protocol {protocol.name} needs {span}",
            hint=f"choose a protocol with shorter clips, or --set clip.frames={made.frames}",
        )
    if level is not None:
        protocol = _at_level(protocol, level, made)
    about = {
        "path": str(path), "checkpoint_sha256": model.sha256, "step": model.header.step, "ema": model.header.ema,
        "videos_seen": model.header.videos_seen, "sample_options": options, "seeds": f"0-{count - 1}",
        "frames": frames or made.frames,
    }  # fmt: skip
    if reads:
        about["captions"] = f"the lines of {inputs.prompts}, one a seed" if texts else NO_CAPTIONS

    def make(seeds: Sequence[int]) -> Any:
        made = iterate_samples(model, seeds, prompts=texts, frames=frames, device=device, **changes)
        return ((item.seed, item.video) for item in made)

    identity = hash_record(
        {"checkpoint": model.sha256, "options": options, "seeds": count, "prompts": texts, "frames": frames}
    )
    return GeneratedSource(make, count, identity), about, protocol


def _at_level(protocol: Protocol, level: int, made: Outline) -> Protocol:
    """The protocol for a pyramid level: real clips get the level's size and show every n-th frame as it does."""
    size = protocol.clip.size or made.size
    stride = protocol.real.stride * made.frame_step
    changed = protocol.updated({"clip": {"size": list(size)}, "real": {"stride": stride}})
    return changed.model_copy(update={"name": f"{protocol.name} (level {level})"})
