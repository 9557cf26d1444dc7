"""Linear relaxations of LeakyRelu, Clip, Sigmoid and Tanh: true as computed, in rationals and in 60 digits, and no looser than needed."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import mpmath
import numpy as np
import pytest
import torch

from vsparse.bounds import interval, linear_relaxation
from vsparse.bounds.operators.sigmoidal import FUNCTION_ERROR_64
from vsparse.graph import Clip, Graph, LeakyRelu, Sigmoid, Tanh

NODE = {"name": "y", "inputs": ("x",), "shape": (1,)}
CLIPS = [(0.0, 6.0), (-0.5, 2.0), (-inf, 1.0), (0.25, inf), (0.5, 0.5), (-3.0, -1.0)]


def ends(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns intervals of every kind: wide, narrow, of one number, far from zero, with ends at the kinks."""
    scale = 10.0 ** rng.uniform(-9, 4, count)
    centre = rng.choice([0.0, 1.0], count) * rng.normal(size=count) * 10.0 ** rng.uniform(-3, 2, count)
    first, second = (centre + rng.normal(size=count) * scale for _ in range(2))
    special = rng.choice([0.0, 6.0, -0.5, 2.0, 1.0, 0.25, 0.5, -3.0, -1.0], count)
    first = np.where(rng.random(count) < 0.15, special, first)
    second = np.where(rng.random(count) < 0.1, first, second)
    return torch.tensor(np.minimum(first, second)), torch.tensor(np.maximum(first, second))


def exact_leaky(slope: float):
    return lambda x: x if x >= 0 else x * Fraction(slope)


def exact_clip(lowest: float, highest: float):
    def clip(x: Fraction) -> Fraction:
        x = x if x >= lowest else Fraction(lowest)
        return x if x <= highest else Fraction(highest)

    return clip


PIECEWISE = [(LeakyRelu(**NODE, slope=s), exact_leaky(s), (0.0,)) for s in (0.0, float(np.float32(0.01)), 0.5, 1.0)] + [
    (Clip(**NODE, lowest=a, highest=b), exact_clip(a, b), (a, b)) for a, b in CLIPS
]


@pytest.mark.parametrize(("node", "exact", "kinks"), PIECEWISE)
def test_piecewise_lines_are_true_in_rationals(node, exact, kinks) -> None:
    """Between its kinks a piecewise linear function minus a line is linear, so ends and kinks decide."""
    lower, upper = ends(np.random.default_rng(1), 400)
    found = linear_relaxation(node, lower, upper, True)
    loosest = 0.0
    for low, high, *line in zip(lower.tolist(), upper.tolist(), *(part.tolist() for part in found), strict=True):
        below, under, above, over = (Fraction(part) for part in line)
        assert 0 <= below <= 1
        assert 0 <= above <= 1
        points = [Fraction(p) for p in (low, high, *(kink for kink in kinks if low < kink < high))]
        gaps = [(above * x + over - exact(x), exact(x) - below * x - under) for x in points]
        assert all(gap >= 0 for pair in gaps for gap in pair), (node, low, high)
        # Each line touches the function at some point, up to the slack it is moved by.
        slack = 2.0**-48 * max(abs(low), abs(high))
        loosest = max(loosest, *(float(min(gap)) / (slack + 1e-300) for gap in zip(*gaps, strict=True)))
    assert loosest <= 1


@pytest.mark.parametrize("node", [Tanh(**NODE), Sigmoid(**NODE)])
def test_sigmoidal_lines_are_true_in_60_digits(node) -> None:
    """f − a·x has no other extremes on an interval than the ends and the two points where f' = a: these decide."""
    lower, upper = ends(np.random.default_rng(2), 500)
    found = linear_relaxation(node, lower, upper, True)
    half = isinstance(node, Sigmoid)
    tightest = inf
    with mpmath.workdps(60):

        def f(x: mpmath.mpf) -> mpmath.mpf:
            return 1 / (1 + mpmath.exp(-x)) if half else mpmath.tanh(x)

        for low, high, *line in zip(lower.tolist(), upper.tolist(), *(part.tolist() for part in found), strict=True):
            below, under, above, over = (mpmath.mpf(part) for part in line)
            for slope, intercept, sign in ((above, over, 1), (below, under, -1)):
                points = [mpmath.mpf(low), mpmath.mpf(high)]
                if 0 < slope < (mpmath.mpf("0.25") if half else 1):
                    star = mpmath.acosh(1 / (2 * mpmath.sqrt(slope))) * 2 if half else mpmath.acosh(1 / mpmath.sqrt(slope))
                    points += [x for x in (star, -star) if low < x < high]
                gaps = [sign * (slope * x + intercept - f(x)) for x in points]
                assert min(gaps) > 0, (node, low, high, sign)
                # The line touches the function, up to what it was moved by; 2^-40 where h(a) is included in doubt.
                tightest = min(tightest, float(min(gaps)))
                assert float(min(gaps)) <= 2.0**-38 * (1 + float(slope) * max(abs(low), abs(high))), (node, low, high, sign)
    assert tightest < 2.0**-42


def test_float64_functions_err_by_less_than_is_assumed() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=1500) * 10.0 ** rng.uniform(-12, 3, 1500), np.linspace(-40, 40, 1001)])
    sigmoid, tanh = torch.sigmoid(torch.tensor(x)).numpy(), torch.tanh(torch.tensor(x)).numpy()
    with mpmath.workdps(40):
        worst = max(
            max(abs(mpmath.mpf(float(s)) - 1 / (1 + mpmath.exp(-mpmath.mpf(v)))), abs(mpmath.mpf(float(t)) - mpmath.tanh(mpmath.mpf(v))))
            for v, s, t in zip(x.tolist(), sigmoid, tanh, strict=True)
        )
    assert 0 < worst < FUNCTION_ERROR_64 / 64


def test_wide_sigmoidal_intervals_end_in_constants() -> None:
    for low, high in ((-inf, inf), (-inf, 2.0), (float("nan"), 1.0), (-1e300, 1e300)):
        line = linear_relaxation(Tanh(**NODE), torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64), True)
        assert float(line.lower_slope) <= 1e-290
        assert float(line.lower_intercept) <= -1
        assert float(line.upper_intercept) >= 1
    far = linear_relaxation(Sigmoid(**NODE), torch.tensor([50.0], dtype=torch.float64), torch.tensor([60.0], dtype=torch.float64), True)
    assert float(far.lower_intercept) == pytest.approx(1, abs=1e-12)


def test_area_between_the_lines_is_that_of_the_best_tangent_or_chord() -> None:
    """By hand: on [−1, 3] the upper line of tanh touches at the middle 1 or where the line from the lower end does, whichever is later."""
    lower, upper = torch.tensor([-1.0, 0.5, -3.0], dtype=torch.float64), torch.tensor([3.0, 1.5, -1.0], dtype=torch.float64)
    line = linear_relaxation(Tanh(**NODE), lower, upper, True)
    tangent = 1 - np.tanh(1.0) ** 2
    assert line.upper_slope[0].item() == pytest.approx(tangent)
    assert line.upper_intercept[0].item() == pytest.approx(np.tanh(1.0) - tangent)
    assert line.upper_slope[1].item() == pytest.approx(tangent)
    assert line.upper_slope[2].item() == pytest.approx((np.tanh(-1) - np.tanh(-3)) / 2)  # convex: the chord above,
    assert line.lower_slope[2].item() == pytest.approx(1 - np.tanh(-2.0) ** 2)  # the tangent at the middle below
    # Mixed, middle below the tangent point: the line passes through the lower end.
    mixed = linear_relaxation(Tanh(**NODE), torch.tensor([-2.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64), True)
    assert float(mixed.upper_slope * -2 + mixed.upper_intercept) == pytest.approx(np.tanh(-2), abs=1e-6)
    assert float(mixed.lower_slope * 2 + mixed.lower_intercept) == pytest.approx(np.tanh(2), abs=1e-6)


def test_clip_lines_by_hand() -> None:
    def of(low: float, high: float) -> list[float]:
        found = linear_relaxation(Clip(**NODE, lowest=0.0, highest=1.0), torch.tensor([low]).double(), torch.tensor([high]).double(), True)
        return [part.item() for part in found]

    assert of(0.25, 0.75) == [1, 0, 1, 0]
    assert of(-2, -1) == [0, 0, 0, 0]
    assert of(2, 3) == [0, 1, 0, 1]
    assert of(-1, 0.5) == pytest.approx([0, 0, 1 / 3, 1 / 3])  # a ReLU, mostly off
    assert of(-0.5, 1) == pytest.approx([1, 0, 2 / 3, 1 / 3])  # a ReLU, mostly on
    assert of(0, 3) == pytest.approx([1 / 3, 0, 0, 1])  # mostly saturated above
    assert of(-1, 3) == pytest.approx([1 / 3, 0, 0, 1])  # the middle is where it saturates: either line above would do


@pytest.mark.parametrize("node", [LeakyRelu(**NODE, slope=0.1), Clip(**NODE, lowest=-0.5, highest=2.0), Sigmoid(**NODE), Tanh(**NODE)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lines_for_training_are_true_up_to_rounding_and_have_gradients(node, dtype) -> None:
    lower, upper = (end.to(dtype).clamp(-1e3, 1e3).requires_grad_() for end in ends(np.random.default_rng(4), 2000))
    found = linear_relaxation(node, lower, upper, False)
    graph = Graph("x", (1,), (node,), "y")
    slack = 1e-5 if dtype == torch.float32 else 1e-9
    for t in torch.linspace(0, 1, 33, dtype=dtype):
        x = torch.minimum(torch.maximum(lower + t * (upper - lower), lower), upper)
        y = interval(graph, {}, (x, x))["y"][0]
        size = slack * (1 + x.abs())
        assert bool((found.lower_slope * x + found.lower_intercept <= y + size).all())
        assert bool((found.upper_slope * x + found.upper_intercept >= y - size).all())
    sum(part.sum() for part in found).backward()
    assert bool(torch.isfinite(lower.grad).all())
    assert bool(torch.isfinite(upper.grad).all())
    assert float(lower.grad.abs().max()) > 0
