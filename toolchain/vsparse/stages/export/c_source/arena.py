"""One arena for everything that a network computes: where each tensor lies, so that those that live at one time never overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `size` elements that is written first in step `first` and read last in step `last`."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Returns whether both live in some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """The offset of each tensor by its name, and the elements that the arena must have."""

    offsets: dict[str, int]
    size: int


# Finding the least arena is NP-hard, so several orders are tried; the first of equals is kept.
_ORDERS: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
    lambda one: (-one.size, one.first),
    lambda one: (-one.size * (one.last - one.first + 1), one.first),
    lambda one: (one.first, -one.size),
    lambda one: (one.first - one.last, -one.size),
)


def plan_arena(lifetimes: Sequence[Lifetime], unit: int = 1) -> Arena:
    """Places every tensor at the lowest offset, a multiple of `unit`, that none of those placed before and alive with it takes.

    Greedy, over four orders (by size, by size times life, by birth, by life), as in Pisarchyk and Lee 2020 (arXiv 2001.03288).
    """
    plans = [_place(sorted(lifetimes, key=order), unit) for order in _ORDERS]
    return min(plans, key=lambda plan: plan.size)


def _place(ordered: Sequence[Lifetime], unit: int) -> Arena:
    offsets: dict[str, int] = {}
    placed: list[Lifetime] = []
    for one in ordered:
        taken = sorted((offsets[other.name], offsets[other.name] + other.size) for other in placed if other.meets(one))
        offset = 0
        for start, end in taken:
            if offset + one.size <= start:
                break
            offset = max(offset, -(-end // unit) * unit)
        offsets[one.name] = offset
        placed.append(one)
    return Arena(offsets, max((offsets[one.name] + one.size for one in ordered), default=0))
