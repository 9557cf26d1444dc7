"""Pareto fronts: which points no other point beats, and which few of many stand for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import dist

Coordinates = Sequence[float]


def dominates(a: Coordinates, b: Coordinates) -> bool:
    """Returns whether `a` is nowhere worse than `b` and somewhere better; lower is better in every coordinate."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Coordinates]) -> list[bool]:
    """Returns for each point whether no other dominates it; equal points are on the front together."""
    return [not any(dominates(other, point) for other in points) for point in points]


def layers(points: Sequence[Coordinates]) -> list[int]:
    """Returns the layer of each point: 0 on the front, 1 on the front of what is left without layer 0, and so on.

    The non-dominated sorting of NSGA-II (Deb et al., IEEE Trans. Evolutionary Computation 6(2), 2002, section III.A).
    """
    found = [-1] * len(points)
    left = list(range(len(points)))
    layer = 0
    while left:
        for position, on_front in zip(list(left), front([points[position] for position in left]), strict=True):
            if on_front:
                found[position] = layer
        left = [position for position in left if found[position] < 0]
        layer += 1
    return found


def spread_out(points: Sequence[Coordinates], first: int) -> list[int]:
    """Returns all indices in an order of which every prefix is well spread: from `first` on, always the point farthest from those before.

    Distances are Euclidean with each axis scaled to its range (the ε-net of Clarkson, as Schmucker et al., arXiv 2106.12639, use
    it within a layer). Of equally far points the earliest is taken.
    """
    lows, highs = [min(axis) for axis in zip(*points, strict=True)], [max(axis) for axis in zip(*points, strict=True)]
    scaled = [[(x - low) / ((high - low) or 1.0) for x, low, high in zip(point, lows, highs, strict=True)] for point in points]
    order, away = [first], [dist(point, scaled[first]) for point in scaled]
    while len(order) < len(points):
        following = max((position for position in range(len(points)) if position not in order), key=lambda position: away[position])
        order.append(following)
        away = [min(old, dist(point, scaled[following])) for old, point in zip(away, scaled, strict=True)]
    return order


def representatives(points: Sequence[Coordinates], count: int) -> list[int]:
    """Returns the indices of `count` points, in ascending order: layer by layer, and of a layer that fits only in part a spread-out choice.

    The choice begins with the best on the first axis. This is how successive halving with several objectives chooses whom to keep
    (Schmucker et al., arXiv 2106.12639).
    """
    layer = layers(points)
    chosen: list[int] = []
    for number in sorted(set(layer)):
        members = [position for position in range(len(points)) if layer[position] == number]
        first = min(range(len(members)), key=lambda index: points[members[index]][0])
        chosen += [members[index] for index in spread_out([points[position] for position in members], first)]
    return sorted(chosen[:count])
