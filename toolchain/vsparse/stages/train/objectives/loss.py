"""The interface of a training objective: its description, its input and its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, Literal

from torch import Tensor

from vsparse.draws import Draws
from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe_train import LossSpec, Train
from vsparse.stages.train.bounds.margins import Box, Params

ValidationMeasure = Literal["interval", "crown", "attack", "explained"]

# Keys of [train.loss] that an objective must say it reads, and which of ours do.
CHOSEN_KEYS = {
    "attack_radius": "mtl-ibp, cc-ibp or exp-ibp",
    "relu_shrink": "sabr or staps",
    "mix_probability": "mixtrain",
    "mix_weight": "mixtrain",
    "mix_growth": "mixtrain",
}


@dataclass(frozen=True)
class TrainingBatch:
    """One batch and where the schedule stands: x float32 [batch, C, H, W] in [0, 1], labels int64 [batch] (of regression
    the targets, float32).

    `epsilon` is the radius now and `epsilon_max` the one at the end of the ramp; `kappa` is the weight of the clean loss;
    `enclosure` asks for interval bounds of the activations, which a term of the loss will read; random draws come from `generator` alone,
    by the functions of `vsparse.draws` (on the processor it is torch's own, unless train.draws says otherwise). `epoch` counts the
    epochs of the phase that have passed, fractions included. With `population` attacks and bounds use the batch-norm statistics among
    the parameters, not those of the batch.
    """

    x: Tensor
    labels: Tensor
    epsilon: float
    epsilon_max: float
    kappa: float
    enclosure: bool
    generator: Draws
    epoch: float = 0.0
    population: bool = False

    def part(self, which: slice) -> TrainingBatch:
        """Returns the same with these samples alone."""
        return replace(self, x=self.x[which], labels=self.labels[which])


@dataclass(frozen=True)
class Loss:
    """A scalar with gradients; the batch statistics of the clean pass by parameter name (empty without batch norm); interval bounds.

    `enclosure` maps activations before the last layer to (lower, upper), with gradients, where the objective has bounded them over the
    box of `TrainingBatch.epsilon` or a part of it; None where it has not.
    """

    value: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)
    enclosure: dict[str, Box] | None = None


class Objective(ABC):
    """Computes the loss of a batch with the parameters given, those of the graph it was made for.

    The class says what the rest of vsparse needs to know; nothing else lists objectives but the table of names (`recipe_train.OBJECTIVES`).
    """

    certified: ClassVar[bool] = False
    """Whether the loss bounds the network over the region or a part of it: weights start as bounds need them, and bfloat16 is refused."""
    uses_epsilon: ClassVar[bool] = True
    """Whether the radius enters the loss, so that a smaller one may help where training diverges."""
    validated_by: ClassVar[ValidationMeasure] = "attack"
    """How the best epoch is chosen: by interval bounds where the loss makes these tight over the whole box, by CROWN where it bounds a
    part of the box or less tightly, by an attack where nothing is bounded and few samples would be certified; of regression, by how much of
    the targets' variance is explained, also in the worst case of interval bounds."""
    is_cross_entropy: ClassVar[bool] = True
    """Whether the loss is one of a network's or of worst-case logits alone, so that ln(classes) is the loss of a constant answer."""
    report: ClassVar[str] = ""
    """The sentence of the report on what the network was trained for; empty: its name is given."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Which of CHOSEN_KEYS, keys of `[train.loss]` that few objectives know, it takes into account; others are refused."""
    engines: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Classes that compute the same with other bounds, as module:Class of this package by the recipe's `train.engine`."""

    @abstractmethod
    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        """Makes the objective for a graph; one whose bounds train tensors of their own puts these into `params`.

        Raises InputError for a network that it cannot train.
        """

    @abstractmethod
    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        """Returns the loss of a batch, a mean over its samples."""

    def restart(self) -> None:  # noqa: B027 (most keep nothing)
        """Forgets whatever earlier batches left; called before each epoch, so that one can be resumed. Nothing, unless overridden."""

    @classmethod
    def require(cls, spec: Train) -> None:
        """Raises InputError for a recipe whose other keys do not go with this objective."""
        for key, readers in CHOSEN_KEYS.items():
            if key not in cls.reads and getattr(spec.loss, key) != LossSpec.model_fields[key].default:
                raise InputError(
                    f'train.loss.{key} says nothing to train.objective = "{spec.objective}"; leave it out, or set objective to {readers}'
                )
        if spec.amp and cls.certified:
            raise InputError(
                f'train.amp would round the bounds of train.objective = "{spec.objective}" to bfloat16, and rounded bounds are none; '
                "leave it off with certified objectives"
            )
        if spec.engine != "vsparse" and spec.engine not in cls.engines:
            raise InputError(
                f'train.engine = "{spec.engine}" has no bounds for train.objective = "{spec.objective}"; set train.engine = "vsparse", or '
                'train.objective = "crown-ibp"'
            )


def require_loss(loss: object, name: str) -> None:
    """Raises InputError unless an objective has returned a Loss whose value is one number."""
    if not isinstance(loss, Loss) or not isinstance(loss.value, Tensor) or loss.value.dim() != 0:
        got = f"a value of shape {list(loss.value.shape)}" if isinstance(loss, Loss) and isinstance(loss.value, Tensor) else None
        raise InputError(f"train.objective {name} returned {got or type(loss).__name__}, not a Loss with one number; return Loss(value)")
