"""A classifier against a constant answer: what the largest class alone reaches, and whether predictions are better than that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, fsum, isfinite, lgamma, log, log1p
from typing import Any

from pydantic import ConfigDict, Field

from vsparse.schema import Section

# How likely a classifier that is no better than the constant answer may look as good as this by luck.
LEVEL = 0.05


def sign_test(gained: int, lost: int) -> float:
    """Returns how likely at least so many of gained + lost samples would be gained, were either as likely for each.

    The exact one-sided test: the sum of C(n, k)/2^n over k >= gained, n = gained + lost (McNemar, Psychometrika 12, 1947).
    """
    return binomial_tail(gained, gained + lost, 0.5)


def binomial_tail(successes: int, samples: int, share: float) -> float:
    """Returns P[X >= successes] for X ~ Binomial(samples, share): the sum of C(n, k) p^k (1 - p)^(n - k) over k >= successes.

    For independent samples whose chances differ and are `share` in the mean it is an upper bound from samples * share + 1 on
    (Hoeffding, Ann. Math. Statist. 27, 1956, theorem 4).
    """
    if successes <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    n, yes, no = samples, log(share), log1p(-share)
    terms = (exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * yes + (n - k) * no) for k in range(successes, n + 1))
    return min(1.0, fsum(terms))


class AgainstMajority(Section):
    """Predictions beside the constant answer of the largest class, counted on one set of samples.

    `correct` are right; `majority` would be right by always naming the largest class; `gained` are right where that answer is wrong,
    `lost` wrong where it is right; `answers` is how many different classes are predicted.
    """

    model_config = ConfigDict(strict=True)

    samples: int = Field(ge=0)
    correct: int = Field(ge=0)
    majority: int = Field(ge=0)
    gained: int = Field(ge=0)
    lost: int = Field(ge=0)
    answers: int = Field(ge=0)

    @property
    def clean_accuracy(self) -> float:
        """Fraction of the samples that are right."""
        return self.correct / self.samples if self.samples else 0.0

    @property
    def majority_accuracy(self) -> float:
        """Fraction of the samples that the constant answer has right."""
        return self.majority / self.samples if self.samples else 0.0

    @property
    def chance(self) -> float:
        """How likely so many of the samples on which the two differ would be gained, were both equally good."""
        return sign_test(self.gained, self.lost)

    @property
    def beaten(self) -> bool:
        """Whether the predictions beat the constant answer: more are right, and not by luck (or all are right)."""
        return self.answers > 1 and self.correct > self.majority and (self.chance <= LEVEL or self.correct == self.samples)

    def beaten_by_mean(self, accuracies: Sequence[float]) -> bool:
        """Whether the constant answer is beaten although the network was chosen, on these very samples, out of several.

        `accuracies` are the clean accuracies, on the samples, of all that it was chosen from. The best of many guesses looks like more
        than a guess, their mean does not: either so many samples are gained that none of the choices explains it (the sign test at
        LEVEL / choices, Bonferroni), or as many as the mean of the choices has right are unlikely for a guess with the share of the
        largest class (the binomial tail at LEVEL).
        """
        if not self.beaten or not accuracies:
            return self.beaten
        mean = int(fsum(accuracies) / len(accuracies) * self.samples + 1e-6)
        return self.chance * len(accuracies) <= LEVEL or binomial_tail(mean, self.samples, self.majority_accuracy) <= LEVEL

    @property
    def too_few(self) -> bool:
        """Whether `beaten_by_mean` could be denied to a network that has all samples right in every epoch: they are too few to tell."""
        return binomial_tail(self.samples, self.samples, self.majority_accuracy) > LEVEL

    @property
    def reason(self) -> str:
        """Why the constant answer is not beaten, with the way out; empty where it is."""
        if self.beaten:
            return ""
        compared = f"{100 * self.clean_accuracy:.1f} % are right and {100 * self.majority_accuracy:.1f} % are of the largest class"
        if not self.samples or self.majority == self.samples:
            return f"all {self.samples} samples are of one class, on which a constant answer is right; evaluate samples of every class"
        if self.answers == 1:
            return f"all {self.samples} predictions are one class: {compared}"
        luck = f", which luck explains (p = {self.chance:.2g}, at most {LEVEL:g} wanted)" if self.correct > self.majority else ""
        return f"no better than a constant answer: {compared}{luck} ({self.samples} samples)"

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        return self.model_dump(mode="json")


def against_majority(labels: Sequence[int], predicted: Sequence[int]) -> AgainstMajority:
    """Compares predictions with the constant answer of the most frequent label (the least of several); one of each for every sample."""
    counts = Counter(labels)
    largest = min(counts, key=lambda label: (-counts[label], label), default=0)
    pairs = Counter((label == largest, label == answer) for label, answer in zip(labels, predicted, strict=True))
    return AgainstMajority(
        samples=len(labels),
        correct=pairs[True, True] + pairs[False, True],
        majority=counts[largest],
        gained=pairs[False, True],
        lost=pairs[True, False],
        answers=len(set(predicted)),
    )


def against_mean(targets: Sequence[float], answers: Sequence[float | None]) -> AgainstMajority:
    """Compares the answers of a regression with the constant answer of the targets' mean: which is nearer, sample by sample.

    `correct` and `gained` count the samples on which the network is nearer to the target, `majority` and `lost` those on which the
    constant is, or both are as near; `answers` counts different ones. An answer that is not finite (None) is nearer to nothing.
    """
    mean = fsum(targets) / len(targets) if targets else 0.0
    pairs = list(zip(targets, answers, strict=True))
    nearer = sum(answer is not None and isfinite(answer) and abs(answer - target) < abs(mean - target) for target, answer in pairs)
    lost = len(pairs) - nearer
    return AgainstMajority(samples=len(pairs), correct=nearer, majority=lost, gained=nearer, lost=lost, answers=len(set(answers)))
