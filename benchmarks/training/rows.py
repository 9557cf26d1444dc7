"""The rows of the training tables: a recipe and what differs from it, for each seed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of a table; `samples` test samples are certified, 0 means all."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    samples: int = 0


TABLES: dict[str, list[Row]] = {"smoke": [Row("digits", "digits", ("train.epochs=5",))]}
