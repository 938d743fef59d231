"""What families that are told a class or a text have in common: the modules that read it, and what a request wants.

Shapes: B rows.
"""

from __future__ import annotations

from hpdm_core.conditioning.conditions import (
    Condition,
    Conditioner,
    batch_condition,
    build_conditioner,
    check_wanted,
    wanted_condition,
)
from hpdm_core.conditioning.labels import LabelTokens
from hpdm_core.conditioning.text import TextTokens
from hpdm_core.config.schema import ConditionSection
from hpdm_core.data.window import Batch
from hpdm_core.families.base import Family
from hpdm_core.rng import BatchStreams
from hpdm_core.sampling.stage import Request


class ConditionedFamily(Family):
    """A family that `model.condition` tells a class, a text or nothing."""

    labels: LabelTokens | None
    text: TextTokens | None

    def listen(self, section: ConditionSection, dim: int) -> None:
        """Build what makes condition tokens of width `dim`; the end of a constructor."""
        self.condition_drop = section.drop
        conditioner = build_conditioner(section, dim)
        self.labels = conditioner if isinstance(conditioner, LabelTokens) else None
        self.text = conditioner if isinstance(conditioner, TextTokens) else None

    @property
    def conditioner(self) -> Conditioner | None:
        """What makes condition tokens, under one of its two names."""
        return self.labels or self.text

    @property
    def listeners(self) -> tuple[str, ...]:
        """The names of the modules that `listen` built: they train with the denoiser."""
        return tuple(name for name in ("labels", "text") if getattr(self, name) is not None)

    def batch_condition(self, batch: Batch, streams: BatchStreams) -> Condition | None:
        """The condition of a training batch, withheld from a share of its rows; None for an unconditional model."""
        return batch_condition(self.conditioner, batch, self.condition_drop, streams)

    def check_request(self, request: Request) -> None:
        """Raise ConfigError for a condition that the model cannot follow, or that is not one per seed."""
        rows = len(request.seeds)
        check_wanted(self.conditioner, request.labels, request.prompts, rows)
        check_wanted(self.conditioner, None, request.negatives, rows)

    def wanted(self, request: Request) -> Condition | None:
        """The condition that the videos of `request` follow: the null one where it names none."""
        return wanted_condition(self.conditioner, request.labels, request.prompts, len(request.seeds))

    def unwanted(self, request: Request) -> Condition | None:
        """The condition that guidance leads away from: the negative texts, or the null one."""
        return wanted_condition(self.conditioner, None, request.negatives, len(request.seeds))


def asks(request: Request) -> bool:
    """Whether `request` says anything that guidance could follow."""
    return any(given is not None for given in (request.labels, request.prompts, request.negatives))
