"""How sure a share of samples is: exact confidence intervals of one, and exact tests of the difference of two."""

from __future__ import annotations

import math

from scipy.special import betaincinv

from vsparse.majority import sign_test

CONFIDENCE = 0.95
# Ends are kept with this many decimals, rounded outwards, so that they are the same text with every version of scipy.
DECIMALS = 6


def clopper_pearson(successes: int, samples: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the exact two-sided interval of a binomial proportion, its ends rounded outwards to 6 decimals.

    The lower end p has P[Bin(n, p) >= k] = (1 - confidence) / 2, the upper end P[Bin(n, p) <= k] the same: quantiles of Beta(k, n - k + 1)
    and Beta(k + 1, n - k) (Clopper and Pearson, Biometrika 26, 1934). ValueError for counts that are none of one set.
    """
    if not 0 <= successes <= samples or samples == 0:
        raise ValueError(f"{successes} of {samples} is no count of one set of samples")
    half = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, samples - successes + 1, half))
    high = 1.0 if successes == samples else float(betaincinv(successes + 1, samples - successes, 1 - half))
    scale = 10**DECIMALS
    # The quantile itself is right to some 1e-12: what lies so near to a step is moved by a step.
    return max(0.0, math.floor(low * scale - 1e-4) / scale), min(1.0, math.ceil(high * scale + 1e-4) / scale)


def percent_span(low: float, high: float) -> str:
    """Returns an interval in percent as `89.8–95.5`, its ends rounded outwards once more."""
    shown = (f"{math.floor(low * 1000 + 1e-6) / 10:.1f}", f"{math.ceil(high * 1000 - 1e-6) / 10:.1f}")
    return "–".join(text.removesuffix(".0") for text in shown)


def interval_of_share(share: float, samples: int) -> tuple[float, float]:
    """Returns the same of a share of so many samples, whose count is the nearest integer."""
    return clopper_pearson(min(max(round(share * samples), 0), samples), samples)


def mcnemar(only_one: int, only_other: int) -> float:
    """Returns the two-sided exact p-value that two classifiers are as good as each other, judged on the same samples.

    `only_one` counts samples on which the first alone succeeds, `only_other` those of the second: twice the smaller tail of Bin(n, 1/2)
    (McNemar, Psychometrika 12, 1947).
    """
    return min(1.0, 2 * sign_test(max(only_one, only_other), min(only_one, only_other)))


def fisher(one: int, of_one: int, other: int, of_other: int) -> float:
    """Returns the two-sided exact p-value that two shares, each on samples of its own, are of one chance.

    The sum of the hypergeometric chances of all tables with the same margins that are no likelier than the one seen (Fisher 1922).
    """
    total, successes = of_one + of_other, one + other

    def log_chance(count: int) -> float:
        return _log_binomial(of_one, count) + _log_binomial(of_other, successes - count) - _log_binomial(total, successes)

    seen = log_chance(one)
    counts = range(max(0, successes - of_other), min(of_one, successes) + 1)
    return min(1.0, math.fsum(math.exp(chance) for count in counts if (chance := log_chance(count)) <= seen + 1e-7))


def _log_binomial(of: int, chosen: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(chosen + 1) - math.lgamma(of - chosen + 1)
