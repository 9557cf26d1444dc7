"""train/history.json: the epochs of one network, and what it answers on the validation split after the last."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vsparse.artifact.document import Count, Document, Fraction01, Part
from vsparse.artifact.forms import Variant
from vsparse.majority import AgainstMajority

MeasuredBy = Literal["interval", "crown", "attack", "explained"]


class Epoch(Part):
    """One epoch: its number from 1, mean loss, fractions of the validation samples, fraction of weights kept, radius, rate, seconds.

    `robust_accuracy` is what `measure` found: certified by interval or crown bounds, or robust under an attack, which proves nothing.
    Of regression (`explained`) both are fractions of the targets' variance: explained, and so in the worst case of interval bounds.
    """

    epoch: int = Field(ge=1)
    loss: float
    clean_accuracy: Fraction01 = Field(alias="clean")
    robust_accuracy: Fraction01 = Field(alias="certified")
    measure: MeasuredBy
    phase: str
    density: Fraction01
    epsilon: float = Field(ge=0)
    learning_rate: float
    seconds: float = Field(ge=0)

    @property
    def certified(self) -> bool:
        """Whether `robust_accuracy` is by bounds, and not by an attack."""
        return self.measure != "attack"


class ObjectiveRecord(Part):
    """The training objective's description of itself: its name in the recipe, and its sentence for the report.

    `certified` says whether it trains on bounds, `validated_by` what `robust_accuracy` of the epochs is measured by, `is_cross_entropy`
    whether its loss compares with that of a constant answer, ln(classes), and `uses_epsilon` whether it reads the radius.
    """

    name: str
    report: str
    certified: bool
    validated_by: MeasuredBy
    is_cross_entropy: bool
    uses_epsilon: bool = True


class History(Document):
    """The epochs of one network, under the name of its variant, what it was trained with, and its answers on the validation split.

    The network is that of `kept_epoch` (0: not on record), whose `robust_accuracy` is of `robust_samples` validation samples.
    """

    sparse: tuple[Epoch, ...] | None = Field(None, exclude_if=lambda value: value is None)
    dense: tuple[Epoch, ...] | None = Field(None, exclude_if=lambda value: value is None)
    objective: ObjectiveRecord
    validation: AgainstMajority
    kept_epoch: int = Field(0, ge=0)
    robust_samples: Count = 0

    @model_validator(mode="after")
    def _of_one_network(self) -> Self:
        if (self.sparse is None) == (self.dense is None):
            raise ValueError("it should hold the epochs of one network, sparse or dense")
        if self.kept_epoch > len(self.epochs):
            raise ValueError("the epoch of its network is not one of its epochs")
        return self

    @classmethod
    def of(
        cls,
        variant: Variant,
        epochs: tuple[Epoch, ...],
        objective: ObjectiveRecord,
        validation: AgainstMajority,
        kept_epoch: int = 0,
        robust_samples: int = 0,
    ) -> Self:
        """Returns the history of a variant of the network."""
        sparse, dense = (epochs, None) if variant == "sparse" else (None, epochs)
        return cls(
            sparse=sparse,
            dense=dense,
            objective=objective,
            validation=validation,
            kept_epoch=kept_epoch,
            robust_samples=robust_samples,
        )

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs, in order."""
        return self.sparse or self.dense or ()

    @property
    def kept(self) -> Epoch | None:
        """The epoch whose network was kept; None where that is not on record."""
        return self.epochs[self.kept_epoch - 1] if self.kept_epoch else None

    @property
    def at_full_radius(self) -> tuple[Epoch, ...]:
        """The epochs of the last phase at its final radius."""
        last = self.epochs[-1:]
        return tuple(epoch for epoch in self.epochs for end in last if (epoch.phase, epoch.epsilon) == (end.phase, end.epsilon))

    @property
    def candidates(self) -> tuple[Epoch, ...]:
        """The epochs that the kept one was chosen from: at the final radius, and with as many weights as at the end."""
        return tuple(epoch for epoch in self.at_full_radius if epoch.density == self.epochs[-1].density)
