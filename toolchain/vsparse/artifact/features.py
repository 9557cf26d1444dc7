"""model/features.json: how a row of a table becomes the input of the network, and the radius of each feature in its unit."""

from __future__ import annotations

from math import inf, nextafter
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vsparse.artifact.document import Document, Part
from vsparse.data import Splits
from vsparse.data.features import Feature, scaled
from vsparse.errors import InputError
from vsparse.perturbation import PerturbationSet

FEATURES = "model/features.json"

Positive = Annotated[float, Field(gt=0)]


class FeatureRecord(Part):
    """One input: x = clip((value − low) / span, 0, 1) in float32, of the value of `column` in its own unit.

    Where `category` is stated the value is 1 if the column has that text, else 0. `mean` and `std` are of the training split in the
    column's unit. `epsilon` is the radius in that unit that the certificates are about, 0 for what nothing may change.
    """

    name: str
    column: str
    category: str | None
    fixed: bool
    low: float
    span: Positive
    mean: float
    std: Annotated[float, Field(ge=0)]
    deviations: Annotated[int, Field(ge=1)]
    epsilon: Annotated[float, Field(ge=0)]


class FeatureList(Document):
    """The inputs of a network of a table, in order."""

    features: Annotated[tuple[FeatureRecord, ...], Field(min_length=1, max_length=65_536)]

    def scaled(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float32], int]:
        """Returns values [n, F] in their own units as inputs in [0, 1], and how many lay outside of the data range and were clipped."""
        return scaled(tuple(Feature(**one.model_dump(exclude={"category", "epsilon"})) for one in self.features), values)


def features_of(splits: Splits, perturbation: PerturbationSet) -> FeatureList | None:
    """Returns the inputs of a table with their radii, each rounded down; None for other data.

    InputError where the property states radii for another number of inputs: of another recipe, or of other data.
    """
    if not splits.features:
        return None
    if len(perturbation.scales) != len(splits.features):
        raise InputError(
            f"the recipe's property.scales has {len(perturbation.scales)} values and the table {len(splits.features)} inputs; "
            "leave property.scales out, the build derives it"
        )
    found = []
    for feature, radius in zip(splits.features, perturbation.radii(), strict=True):
        own = nextafter(float(radius) * feature.span, -inf) if radius else 0.0
        text = feature.name[len(feature.column) + 1 :] if feature.name != feature.column else None
        about = {name: getattr(feature, name) for name in ("name", "column", "fixed", "low", "span", "mean", "std", "deviations")}
        found.append(FeatureRecord(category=text, epsilon=own, **about))
    return FeatureList(features=tuple(found))
