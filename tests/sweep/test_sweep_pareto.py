"""Pareto fronts against brute force over random points, ties included."""

from __future__ import annotations

import random

import pytest

from vsparse.sweep.pareto import dominates, front, layers, representatives, spread_out


def some_points(draw: random.Random) -> list[tuple[float, ...]]:
    axes, count = draw.randint(1, 4), draw.randint(1, 14)
    # Few values, so that ties are common.
    return [tuple(float(draw.randint(0, 4)) for _ in range(axes)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(60))
def test_the_front_is_what_nothing_dominates(seed: int) -> None:
    points = some_points(random.Random(seed))
    for point, on_front in zip(points, front(points), strict=True):
        beaten = False
        for other in points:
            worse = [a > b for a, b in zip(point, other, strict=True)]
            better = [a < b for a, b in zip(point, other, strict=True)]
            beaten = beaten or (any(worse) and not any(better))
        assert on_front == (not beaten)


@pytest.mark.parametrize("seed", range(40))
def test_layers_peel_the_front_again_and_again(seed: int) -> None:
    points = some_points(random.Random(seed))
    found = layers(points)
    for number in range(max(found) + 1):
        left = [place for place in range(len(points)) if found[place] >= number]
        on_front = front([points[place] for place in left])
        assert [found[place] == number for place in left] == on_front
    for a, layer_a in zip(points, found, strict=True):
        for b, layer_b in zip(points, found, strict=True):
            assert not dominates(a, b) or layer_a < layer_b


@pytest.mark.parametrize("seed", range(40))
def test_representatives_take_whole_layers_first_and_the_best_of_the_first_axis(seed: int) -> None:
    draw = random.Random(seed)
    points = some_points(draw)
    count = draw.randint(1, len(points))
    chosen, found = representatives(points, count), layers(points)
    assert len(chosen) == len(set(chosen)) == count
    assert chosen == sorted(chosen)
    last = max(found[place] for place in chosen)
    assert all(place in chosen for place in range(len(points)) if found[place] < last)
    assert min(point[0] for point in points) in [points[place][0] for place in chosen]


def test_a_choice_of_a_long_front_is_spread_out_by_hand() -> None:
    points = [(float(x), 10.0 - x) for x in range(11)]
    assert representatives(points, 3) == [0, 5, 10]
    assert spread_out(points, 0)[:3] == [0, 10, 5]
    assert spread_out([(1.0,), (1.0,)], 0) == [0, 1]
