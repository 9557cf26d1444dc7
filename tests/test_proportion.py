"""Intervals of shares and tests of differences, against sums of exact rationals."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from vsparse.proportion import clopper_pearson, fisher, interval_of_share, mcnemar, percent_span


def at_least(count: int, samples: int, share: Fraction) -> Fraction:
    """P[Bin(samples, share) >= count], exactly."""
    return sum((comb(samples, k) * share**k * (1 - share) ** (samples - k) for k in range(count, samples + 1)), Fraction(0))


@pytest.mark.parametrize("samples", [1, 2, 7, 40])
def test_the_ends_are_the_exact_limits_rounded_outwards(samples: int) -> None:
    step, half = Fraction(2, 10**6), Fraction(1, 40)
    for count in range(samples + 1):
        low, high = (Fraction(str(end)) for end in clopper_pearson(count, samples))
        assert low <= Fraction(count, samples) <= high
        assert at_least(count, samples, low) <= half or low == 0
        assert count == 0 or at_least(count, samples, low + step) > half
        assert 1 - at_least(count + 1, samples, high) <= half or high == 1
        assert count == samples or 1 - at_least(count + 1, samples, high - step) > half


def test_shares_and_spans() -> None:
    assert interval_of_share(334 / 359, 359) == clopper_pearson(334, 359)
    assert percent_span(*clopper_pearson(334, 359)) == "89.8–95.5"
    assert percent_span(0.0, 1.0) == "0–100"
    with pytest.raises(ValueError, match="no count"):
        clopper_pearson(2, 1)
    with pytest.raises(ValueError, match="no count"):
        clopper_pearson(0, 0)


def test_mcnemar_is_twice_the_smaller_tail() -> None:
    for one in range(9):
        for other in range(9):
            tail = at_least(max(one, other), one + other, Fraction(1, 2))
            assert mcnemar(one, other) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


def test_fisher_adds_the_tables_that_are_no_likelier() -> None:
    for one in range(6):
        for other in range(8):
            chances = {
                k: Fraction(comb(5, k) * comb(7, one + other - k), comb(12, one + other))
                for k in range(max(0, one + other - 7), min(5, one + other) + 1)
            }
            assert fisher(one, 5, other, 7) == pytest.approx(float(sum(p for p in chances.values() if p <= chances[one])), rel=1e-6)
