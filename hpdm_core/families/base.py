"""What a model family is: the only interface that training, sampling and evaluation know.

A family is an `nn.Module` that owns its networks. It says what it reads from a clip (`view`), what it
minimises (`losses`), and how it turns noise into video (`plan`). The loop, the engine and the commands
contain no family's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from hpdm_core.config.schema import ModelSection, OptimizerSection, SampleSection
from hpdm_core.data.window import Batch, ClipView
from hpdm_core.errors import ConfigError
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
class Plateau:
    """When a phase ends before its steps: its reconstructions have not improved for `patience` evaluations.

    reconstruct: a batch's videos and what the phase's networks make of them, float [B, 3, T, H, W] in [-1, 1].
    every_steps: steps from one evaluation to the next. clips: how many clips an evaluation compares.
    The phase ends with the weights of its best evaluation.
    """

    reconstruct: Callable[[Batch], tuple[Tensor, Tensor]]
    every_steps: int
    patience: int
    clips: int


@dataclass(frozen=True)
class Phase:
    """A stretch of training. None takes the config's steps, batch size and micro-batch. plateau: ends it earlier."""

    name: str
    roles: tuple[Role, ...]
    steps: int | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    plateau: Plateau | None = None


@dataclass
class Losses:
    """`total` is differentiated: a mean over the rows of the batch. `parts` are detached scalars to log.

    `terms` are the summands of `total`, still attached, for those who ask how hard each part pulls.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One piece of a grown model: `status` is `reused`, `new`, `moved` or `left out`; `note` says how."""

    name: str
    status: str
    note: str = ""


@dataclass(frozen=True)
class Growth:
    """How a model was grown from a smaller trained one.

    parts: its pieces in reading order. new, left_out: parameters by module that the base did not have, or
    that found no place. reused: number of parameters taken over. block_evals: block evaluations of one
    training item, in the base and in the grown model.
    """

    parts: tuple[Part, ...]
    reused: int
    new: Mapping[str, int]
    left_out: Mapping[str, int]
    block_evals: tuple[int, int]


class Family(nn.Module, ABC):
    """Base of all families. Constructed as `cls(model_section)`; weights are its state dict."""

    name: ClassVar[str]
    model_section: ClassVar[type[ModelSection]]
    sample_section: ClassVar[type[SampleSection]]

    sharded = False
    """Whether weights are spread over ranks: then all of them make the same calls of each module in every step."""

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

    @classmethod
    def target_settings(
        cls, model: Mapping[str, Any], frames: int | None, size: tuple[int, int] | None
    ) -> dict[str, Any]:
        """The keys of `model` to change for videos of `frames` and `size` (height, width); None keeps a side.

        model: the section as it is written, which only the changes may make valid; where nothing can be made of it,
        there are none, and validating it says why. Raises ConfigError with the nearest possible video where the
        geometry is impossible.
        """
        raise ConfigError(
            f"a {cls.name} model cannot be set to another video size from the command line",
            hint="leave --res and --frames away, or change the preset",
        )

    @classmethod
    def most_stages(cls, model: ModelSection) -> int | None:
        """The most stages that sampling takes; None where longer videos take more."""
        return None

    @classmethod
    def unread_entries(cls, model: ModelSection, options: SampleSection) -> dict[str, list[Any]]:
        """Per key of `options` whose list is longer than the stages that there can be, the entries beyond them."""
        most, lists = cls.most_stages(model), ((key, value) for key, value in options if isinstance(value, tuple))
        return {} if most is None else {key: list(value[most:]) for key, value in lists if len(value) > most}

    def grow_from(self, tensors: Mapping[str, Tensor], base: ModelSection) -> Growth:
        """Take over the weights of a smaller trained model of this family, in place.

        tensors: its state dict; base: its config. Works without memory for weights (meta tensors) too.
        Raises ConfigError where this model is not larger than the base, IncompatibleCheckpoint where the
        two do not fit.
        """
        raise ConfigError(f"a {self.name} model cannot be grown from a smaller one", hint="train it with `hpdm train`")

    def exact_prefix(self, options: SampleSection) -> bool:
        """Whether a request for fewer frames makes exactly the first frames of the whole video, for less work."""
        return False

    def varying(self, phase: str, micro_batch: int) -> str:
        """Why the passes of `phase` over so many rows are not the same kernels on the same shapes each time, or "".

        What differs by the positions of a batch's rows alone counts too.
        """
        return ""

    def compile_units(self) -> Sequence[nn.Module]:
        """The repeated blocks: compiled, checkpointed and sharded one by one, from outside."""
        return ()

    def level_shares(self) -> Mapping[str, Mapping[str, float]]:
        """How a training step's work divides over pyramid levels: dotted module name to level to share.

        A submodule without an entry goes with the nearest module around it that has one. {}: no levels.
        """
        return {}

    def forward(self, role: str, batch: Batch, streams: BatchStreams) -> Losses:
        """`losses`, under the name that distributed wrappers call."""
        return self.losses(role, batch, streams)
