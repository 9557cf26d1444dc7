"""A classifier against a constant answer: what the largest class alone reaches, and whether predictions are better than that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, fsum, lgamma, log
from typing import Any

from pydantic import ConfigDict, Field

from vsparse.schema import Section

# How likely a classifier that is no better than the constant answer may look as good as this by luck.
LEVEL = 0.05


def sign_test(gained: int, lost: int) -> float:
    """Returns how likely at least so many of gained + lost samples would be gained, were either as likely for each.

    The exact one-sided test: the sum of C(n, k)/2^n over k >= gained, n = gained + lost (McNemar, Psychometrika 12, 1947).
    """
    n = gained + lost
    return min(1.0, fsum(exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2)) for k in range(gained, n + 1)))


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
        return f"no better than a constant answer: {compared} ({self.samples} samples)"

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
