"""The interface of a sparsifier: the phases of a training, and the changes to masks, weights and scores at the start of an epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.phases import EpochPosition, Phase
from vsparse.stages.train.state import TrainingState
from vsparse.stages.train.units import UnitGroup


class Tools(Protocol):
    """Services that the trainer offers to a sparsifier."""

    def generator(self) -> torch.Generator:
        """Returns a generator for this epoch's choices, a function of the recipe's seed and the epoch alone."""
        ...

    def gradients(self, batches: int, fraction: float | None = None) -> dict[str, Tensor]:
        """Returns the gradient of the mean training loss on `batches` training batches, by the name of each trained parameter.

        `fraction` of the final radius; None: that of this epoch. Masked weights have gradients too. The state is left as it was.
        """
        ...

    def dead_units(self, groups: Sequence[UnitGroup], masks: Masks) -> dict[str, Tensor]:
        """Returns which units of the groups never fire, with these masks, anywhere in the boxes of some batches (dead_units.py)."""
        ...


class Sparsifier(ABC):
    """Decides what is removed and when; everything that must survive an interrupt lies in the state (masks, extras).

    Raises InputError on construction where the budget cannot be met. The class says what it goes with; nothing else lists sparsifiers but
    the table of names (`recipe_train.METHODS`).
    """

    removes_channels: ClassVar[bool] = True
    """Whether it works with granularity "channel" too, or on entries of weights alone."""
    importances: ClassVar[tuple[str, ...]] = ("magnitude",)
    """The values of `train.sparse.importance` that it can rank by."""

    @classmethod
    def require(cls, spec: Train) -> None:
        """Raises InputError for a recipe whose other keys do not go with this sparsifier."""
        sparse = spec.sparse
        if sparse.granularity == "channel" and not cls.removes_channels:
            raise InputError(
                f'train.sparse.method = "{sparse.method}" works on weights; set train.sparse.granularity to element, block or 2:4'
            )
        if sparse.importance not in cls.importances:
            raise InputError(
                f'train.sparse.importance = "{sparse.importance}" does not go with train.sparse.method = "{sparse.method}"; set importance '
                f'to "{cls.importances[0]}", or method to "gradual"'
            )

    def __init__(self, spec: Train, graph: Graph) -> None:
        self.spec, self.graph = spec, graph
        self.pattern = make_pattern(spec, graph)

    def phases(self) -> tuple[Phase, ...]:
        """Returns the phases of the training; one, as the recipe says, unless overridden."""
        return (Phase("train", self.spec.epochs, self.spec.learning_rate),)

    @abstractmethod
    def settled(self, at: EpochPosition) -> bool:
        """Whether the masks are final from this epoch on; only networks of such epochs may be the result."""

    @abstractmethod
    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        """Changes masks, parameters or extras before an epoch; the phase of the state is `at.phase` already."""

    def kept(self, state: TrainingState, at: EpochPosition) -> dict[str, Tensor]:
        """Returns which extras there are after the epoch `at`: tensors shaped like them by name; none unless overridden."""
        return {}

    def magnitudes(self, state: TrainingState) -> dict[str, Tensor]:
        """Returns the score of every item by the magnitude of the parameters, which are at full size."""
        return self.pattern.items({name: value.detach().abs() for name, value in state.params.items()})

    def effective(self, state: TrainingState) -> Mapping[str, Tensor]:
        """Returns the parameters that the loss and the evaluation see; those of the state unless overridden."""
        return state.params

    def before_step(self, state: TrainingState) -> None:
        """Changes the gradients before an optimiser's step: none for what final masks leave out, unless overridden."""
        if state.fixed:
            state.mask_gradients()

    def after_step(self, state: TrainingState) -> None:
        """Restores after an optimiser's step what must hold: final masks, unless overridden."""
        state.enforce()
