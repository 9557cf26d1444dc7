"""The region: outward in float64, inward in float32, and exact membership."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nextafter

import numpy as np
import pytest
import torch

from vsparse.bounds import ball, inner_ball_float32, inside
from vsparse.errors import InputError

RADII = [Fraction(1, 10), Fraction(8, 255), Fraction(1, 4), Fraction(1, 10**12), Fraction(0), Fraction(3)]


def samples():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random(40), np.arange(0, 256, 17) / 255, [0, 1, 0.1, 0.25, 0.75, 8 / 255, 1e-30, 1e-45, 1 - 2.0**-24]])
    return torch.tensor(x.astype(np.float32)).unsqueeze(0)


@pytest.mark.parametrize("radius", RADII)
def test_ball_contains_the_exact_one_and_little_more(radius):
    x = samples()
    lower, upper = ball(x, radius)
    assert lower.dtype == upper.dtype == torch.float64
    for v, low, high in zip(x[0].tolist(), lower[0].tolist(), upper[0].tolist(), strict=True):
        exact = max(Fraction(v) - radius, Fraction(0)), min(Fraction(v) + radius, Fraction(1))
        assert Fraction(low) <= exact[0] <= Fraction(low) + Fraction(2, 2**51)
        assert Fraction(high) >= exact[1] >= Fraction(high) - Fraction(2, 2**51)
        if exact[0] > 0:
            assert Fraction(low) < exact[0], "one unit further than the exact end"


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("clip", [(0.0, 1.0), (-inf, inf), (-0.3, 1.1)])
def test_inner_ball_is_the_largest_float32_box_inside(radius, clip):
    x = samples()
    lower, upper = inner_ball_float32(x, radius, clip)
    assert lower.dtype == upper.dtype == torch.float32
    for v, low, high in zip(x[0].tolist(), lower[0].tolist(), upper[0].tolist(), strict=True):
        low_limit = max(Fraction(v) - radius, Fraction(clip[0])) if clip[0] > -inf else Fraction(v) - radius
        high_limit = min(Fraction(v) + radius, Fraction(clip[1])) if clip[1] < inf else Fraction(v) + radius
        assert Fraction(low) >= low_limit > Fraction(float(np.nextafter(np.float32(low), np.float32(-inf))))
        assert Fraction(high) <= high_limit < Fraction(float(np.nextafter(np.float32(high), np.float32(inf))))
    assert inside(lower, x, radius, clip)
    assert inside(upper, x, radius, clip)


@pytest.mark.parametrize("radius", [Fraction(1, 10), Fraction(8, 255), Fraction(1, 4)])
def test_inside_is_exact_at_the_rim(radius):
    x0 = torch.tensor([0.5], dtype=torch.float64)
    edge = 0.5 + float(radius)
    for v in (edge, nextafter(edge, 0), nextafter(edge, 2), 0.5, 0.5 - float(radius)):
        assert inside(torch.tensor([v], dtype=torch.float64), x0, radius) == (abs(Fraction(v) - Fraction(1, 2)) <= radius)


def test_inside_knows_the_data_range_and_refuses_nan_and_other_shapes():
    x0 = torch.tensor([0.0, 1.0])
    assert inside(torch.tensor([0.1, 0.9]), x0, Fraction(2, 10))
    assert not inside(torch.tensor([-0.1, 0.9]), x0, Fraction(2, 10))
    assert not inside(torch.tensor([float("nan"), 0.9]), x0, Fraction(2, 10))
    assert not inside(torch.tensor([0.1]), x0, Fraction(2, 10))


def test_a_difference_too_small_for_float64_still_counts():
    x0 = torch.tensor([2.0**-149], dtype=torch.float32)
    x = torch.tensor([0.25], dtype=torch.float32)  # 1/4 − 2^-149 is below 1/4, though float64 says they are equal
    assert inside(x, x0, Fraction(1, 4))
    assert not inside(x, x0, Fraction(1, 4) - Fraction(1, 2**148))


@pytest.mark.parametrize(
    ("x", "radius", "clip"),
    [
        (torch.tensor([[float("nan")]]), Fraction(1), (0.0, 1.0)),
        (torch.tensor([[inf]]), Fraction(1), (-inf, inf)),
        (torch.tensor([[1.5]]), Fraction(1), (0.0, 1.0)),
        (torch.tensor([[0.5]]), Fraction(-1), (0.0, 1.0)),
        (torch.tensor([[0.5]]), Fraction(1), (1.0, 0.0)),
        (torch.tensor([[1]]), Fraction(1), (0.0, 1.0)),
    ],
)
def test_a_region_that_makes_no_sense_is_refused(x, radius, clip):
    with pytest.raises(InputError):
        ball(x, radius, clip)
    with pytest.raises(InputError):
        inner_ball_float32(x, radius, clip)
