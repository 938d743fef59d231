"""What a model family is: the only interface that training, sampling and evaluation know.

A family is an `nn.Module` that owns its networks. It says what it reads from a clip (`view`), what it
minimises (`losses`), and how it turns noise into video (`plan`). The loop, the engine and the commands
contain no family's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from hpdm_core.config.schema import ModelSection, OptimizerSection, SampleSection
from hpdm_core.data.window import Batch, ClipView
from hpdm_core.rng import BatchStreams
from hpdm_core.sampling.stage import Outline, Request, Stage, State


@dataclass(frozen=True)
class Role:
    """One optimiser of a phase: which modules it trains, and in which steps it is active.

    Ordinary training has one role. Adversarial training has two whose `active` alternate.
    """

    name: str
    modules: tuple[str, ...]
    active: Callable[[int], bool] = lambda step: True
    optimizer: OptimizerSection | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of training. `steps: None` takes the config's; `batch_size` likewise."""

    name: str
    roles: tuple[Role, ...]
    steps: int | None = None
    batch_size: int | None = None


@dataclass
class Losses:
    """`total` is differentiated: a mean over the rows of the batch. `parts` are detached scalars to log.

    `terms` are the summands of `total`, still attached, for those who ask how hard each part pulls.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


class Family(nn.Module, ABC):
    """Base of all families. Constructed as `cls(model_section)`; weights are its state dict."""

    name: ClassVar[str]
    model_section: ClassVar[type[ModelSection]]
    sample_section: ClassVar[type[SampleSection]]

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """What is trained, in which order."""

    @abstractmethod
    def view(self, phase: str) -> ClipView:
        """What one training item of `phase` reads from a clip."""

    @abstractmethod
    def losses(self, role: str, batch: Batch, streams: BatchStreams) -> Losses:
        """The loss of `role` on `batch`; all randomness comes from `streams`."""

    @abstractmethod
    def outline(self, request: Request, options: SampleSection) -> Outline:
        """The plan's cost and output shape without running anything; raises ConfigError if impossible."""

    @abstractmethod
    def plan(self, request: Request, options: SampleSection) -> Generator[Stage, State, Tensor]:
        """Sampling as a script: yields stages, receives each one's denoised state, returns the video.

        The returned video is float [B, 3, T, H, W] in [-1, 1] for the B rows of `request`.
        """

    def compile_units(self) -> Sequence[nn.Module]:
        """The repeated blocks: compiled, checkpointed and sharded one by one, from outside."""
        return ()

    def forward(self, role: str, batch: Batch, streams: BatchStreams) -> Losses:
        """`losses`, under the name that distributed wrappers call."""
        return self.losses(role, batch, streams)
