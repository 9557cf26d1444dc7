"""certificate/curve.json: clean, robust and certified accuracy of one network against the radius."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from vsparse.artifact.document import Document, Fraction01, Part
from vsparse.artifact.forms import Variant
from vsparse.schema import ExactNumber, parse_fraction


class CurvePoint(Part):
    """The accuracies at one radius, as fractions of the curve's samples; `epsilon` is exact text, `epsilon_value` its nearest double."""

    epsilon: ExactNumber
    epsilon_value: float = Field(ge=0)
    clean_accuracy: Fraction01
    robust_accuracy: Fraction01 = Field(alias="attacked_accuracy")
    certified_accuracy: Fraction01

    @model_validator(mode="after")
    def _one_radius(self) -> Self:
        if self.epsilon_value != float(parse_fraction(self.epsilon)):
            raise ValueError(f"epsilon {self.epsilon} and epsilon_value {self.epsilon_value} are two radii")
        return self


class Curve(Document):
    """Points in ascending order of the radius, over `samples` samples, under the name of the network's variant; `derived` is a rule."""

    samples: int = Field(ge=1)
    derived: str
    sparse: tuple[CurvePoint, ...] | None = Field(None, exclude_if=lambda value: value is None)
    dense: tuple[CurvePoint, ...] | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _of_one_network(self) -> Self:
        if (self.sparse is None) == (self.dense is None):
            raise ValueError("it should hold the points of one network, sparse or dense")
        radii = [point.epsilon_value for point in self.points]
        if radii != sorted(set(radii)):
            raise ValueError("its points should be in ascending order of the radius")
        return self

    @classmethod
    def of(cls, variant: Variant, points: tuple[CurvePoint, ...], samples: int, derived: str) -> Self:
        """Returns the curve of a variant of the network."""
        sparse, dense = (points, None) if variant == "sparse" else (None, points)
        return cls(samples=samples, derived=derived, sparse=sparse, dense=dense)

    @property
    def points(self) -> tuple[CurvePoint, ...]:
        """The points, in ascending order of the radius."""
        return self.sparse or self.dense or ()
