"""From columns in their own units to inputs in [0, 1]: the map of each, fitted to the training split (docs/how-to-own-data.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from vsparse.data.dataset import Dataset
from vsparse.data.table import TableColumn
from vsparse.errors import InputError

# The data range is so much wider than the training values, in standard deviations of each feature, and at most MOST of them.
MARGIN, LEAST, MOST = 1.2, 8, 60


@dataclass(frozen=True)
class Feature:
    """One input: x = clip((value − low) / span, 0, 1), rounded to float32 once, of a `value` in the column's own unit.

    `mean` and `std` are of the training split in that unit. `fixed`: a category, or a column that never changes; no radius goes with it.
    `deviations` is span / std, one number for all features that may change, so that one radius of the inputs is the same number of
    standard deviations of each.
    """

    name: str
    column: str
    fixed: bool
    low: float
    span: float
    mean: float
    std: float
    deviations: int

    @property
    def normal_mean(self) -> float:
        """The mean on the [0, 1] scale."""
        return (self.mean - self.low) / self.span

    @property
    def normal_std(self) -> float:
        """The standard deviation on the [0, 1] scale; 1 where the values are all one."""
        return self.std / self.span if self.std > 0 else 1.0


def fitted(columns: tuple[TableColumn, ...], train: NDArray[np.float64]) -> tuple[Feature, ...]:
    """Returns the map of each column for training values [N, F] in their own units; InputError where none of them changes."""
    least, most = train.min(0), train.max(0)
    for column, low, high in zip(columns, least, most, strict=True):
        if not (np.isfinite(high - low) and max(abs(low), abs(high)) < 1e30):
            raise InputError(f'the column "{column.column}" goes from {low:g} to {high:g}, which float32 does not hold; change its unit')
    mean, std = train.mean(0), train.std(0)
    # A column of one value beside rounding is constant.
    moving = np.array([not column.fixed for column in columns]) & (std > 1e-12 * np.maximum(np.abs(least), np.abs(most)))
    if not (moving.any() or (most > least).any()):
        raise InputError("no column of the table changes from row to row; give features")
    ratio = float(np.max((most - least)[moving] / std[moving])) if moving.any() else 1.0
    deviations = min(MOST, max(LEAST, ceil(MARGIN * ratio)))
    found = []
    for index, column in enumerate(columns):
        low, span = float(least[index]), float(most[index] - least[index]) or 1.0
        if moving[index]:
            # About the middle of the values, or, where they reach further than the range, about their mean.
            span = float(deviations * std[index])
            middle = (least[index] + most[index]) / 2 if most[index] - least[index] <= span else mean[index]
            low = float(middle - span / 2)
        found.append(Feature(column.name, column.column, not moving[index], low, span, float(mean[index]), float(std[index]), deviations))
    return tuple(found)


def scaled(features: tuple[Feature, ...], values: NDArray[np.float64]) -> tuple[NDArray[np.float32], int]:
    """Returns values [N, F] as inputs in [0, 1], and how many of them lay outside of the data range and were clipped to it."""
    low, span = (np.array([getattr(feature, key) for feature in features]) for key in ("low", "span"))
    x = (values - low) / span
    inside = x.clip(0, 1)
    return inside.astype(np.float32), int((np.abs(x - inside) > 1e-9).sum())


def scaled_splits(
    columns: tuple[TableColumn, ...], train: Dataset, validation: Dataset, test: Dataset
) -> tuple[tuple[Dataset, Dataset, Dataset], tuple[Feature, ...], tuple[str, ...]]:
    """Returns the splits in [0, 1], the maps, fitted to the training split alone, and sentences on what was clipped or is constant."""
    flat = {name: data.pixels.reshape(len(data), -1) for name, data in (("train", train), ("validation", validation), ("test", test))}
    features = fitted(columns, flat["train"])
    notes, found = [], []
    for (name, values), data in zip(flat.items(), (train, validation, test), strict=True):
        x, clipped = scaled(features, values)
        if clipped:
            notes.append(f"{clipped} values of the {name} split lie outside of the data range of the training split and are clipped to it")
        found.append(replace(data, pixels=np.ascontiguousarray(x.reshape(data.pixels.shape)), scale=1.0))
    constant = [feature.name for feature, column in zip(features, columns, strict=True) if feature.fixed and not column.fixed]
    if constant:
        notes.append(f"{len(constant)} columns have one value in the training split and are fixed (the first: {constant[0]})")
    return (found[0], found[1], found[2]), features, tuple(notes)
