"""Successive halving: many configurations for a few epochs, the best of them for more, until few are trained in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from vsparse.errors import InputError
from vsparse.recipe import Recipe
from vsparse.sweep.pareto import representatives
from vsparse.sweep.results import AXES, Row

# Epochs counted in recipes; all shrink together, so that a short rung is a short version of the same recipe.
EPOCH_KEYS = ("train.epochs", "train.sparse.prune_epochs", "train.sparse.finetune_epochs", "train.sparse.rewind_epoch")
Keep = Literal["front", "certified"]


@dataclass(frozen=True)
class Halving:
    """How to halve: one in `eta` of a rung goes on, `eta` times as long; no rung is shorter than `first_epochs`.

    `keep` is whom a rung keeps: `front`, those that stand for the Pareto front so far, or `certified`, the most certified.
    """

    eta: int = 3
    first_epochs: int = 3
    keep: Keep = "front"


@dataclass(frozen=True)
class Rung:
    """One rung: how many configurations enter it, and the fraction of the recipe's epochs that they are trained for."""

    configurations: int
    fraction: Fraction


def rungs(configurations: int, epochs: int, halving: Halving | None) -> list[Rung]:
    """Returns the rungs, the last of which trains the whole recipe; a single one without halving.

    Rung r of R takes ⌈n / ηʳ⌉ configurations for η^−(R−1−r) of the epochs (Jamieson and Talwalkar, AISTATS 2016, arXiv
    1502.07943, algorithm 1; Li et al., arXiv 1603.06560, algorithm 1). R is as large as leaves one configuration in the last
    rung and `first_epochs` in the first. InputError where not even two rungs fit.
    """
    if halving is None:
        return [Rung(configurations, Fraction(1))]
    counts = [configurations]
    while counts[-1] > 1 and Fraction(epochs, halving.eta ** len(counts)) >= halving.first_epochs:
        counts.append(-(-counts[-1] // halving.eta))
    if len(counts) == 1:
        raise InputError(
            f"--halving: {configurations} configurations of {epochs} epochs cannot be halved by {halving.eta}: there is one only, or a "
            f"shorter rung would have fewer than {halving.first_epochs} epochs; leave --halving out, or lower --first-epochs"
        )
    return [Rung(count, Fraction(1, halving.eta ** (len(counts) - 1 - index))) for index, count in enumerate(counts)]


def shortened(recipe: Recipe, fraction: Fraction) -> dict[str, Any]:
    """Returns the settings that make a recipe last `fraction` of its epochs: rounded, at least 1, and 0 where it was 0."""
    if fraction == 1:
        return {}
    found: dict[str, Any] = {}
    for key in EPOCH_KEYS:
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part)
        if value:
            found[key] = max(1, round(value * fraction))
    return found


def kept(rows: Sequence[Row], count: int, keep: Keep, axes: Sequence[str]) -> list[Row]:
    """Returns the rows that go on to a rung of `count`, in the order given; those that failed never do, those that collapsed come last.

    A short training may collapse where a longer one learns, so what collapsed goes on where there are not enough others.
    """
    able = [row for row in rows if row.status != "failed"]
    sound = [row for row in able if not row.collapse]
    if len(sound) < count:
        rest = sorted((row for row in able if row.collapse), key=lambda row: row.point(("certified", "clean", "macs")))
        chosen = [*sound, *rest[: count - len(sound)]]
        return [row for row in able if row in chosen]
    able = sound
    if keep == "front":
        return [able[index] for index in representatives([row.point(axes) for row in able], count)]
    ranked = sorted(range(len(able)), key=lambda index: (*able[index].point(("certified", "clean", "macs")), index))
    return [able[index] for index in sorted(ranked[:count])]


def check_axes(axes: Sequence[str]) -> None:
    """Raises InputError for axes that are unknown, given twice, or fewer than two."""
    for axis in axes:
        if axis not in AXES:
            raise InputError(f'--axes: there is no axis "{axis}"; choose from {", ".join(AXES)}')
    if len(set(axes)) < max(2, len(axes)):
        raise InputError(f"--axes: give at least two different ones of {', '.join(AXES)}, such as --axes certified,macs")
