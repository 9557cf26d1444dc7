"""A classifier against a constant answer: counts by hand, the sign test by enumeration, and when the answer is beaten."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from vsparse.majority import AgainstMajority, binomial_tail
from vsparse.majority import against_majority as compare


def against_majority(labels: list[int] | np.ndarray, predicted: list[int] | np.ndarray) -> AgainstMajority:
    """The comparison, of arrays too."""
    return compare(np.asarray(labels).tolist(), np.asarray(predicted).tolist())


def counted(samples: int, correct: int, majority: int, gained: int, lost: int, answers: int) -> AgainstMajority:
    return AgainstMajority(samples=samples, correct=correct, majority=majority, gained=gained, lost=lost, answers=answers)


def test_counts_by_hand() -> None:
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, -1]
    found = against_majority(labels, predicted)
    # Class 0 is the largest, 3 of 6; right are 0, 0 and a 1; gained is the 1, lost the third 0; answers are 0, 1, 2 and -1.
    assert found == AgainstMajority(samples=6, correct=3, majority=3, gained=1, lost=1, answers=4)
    assert (found.clean_accuracy, found.majority_accuracy) == (0.5, 0.5)


@pytest.mark.parametrize("gained", [0, 1, 3, 7, 40])
@pytest.mark.parametrize("lost", [0, 1, 5, 33])
def test_the_sign_test_is_the_binomial_tail(gained: int, lost: int) -> None:
    n = gained + lost
    wanted = sum(comb(n, k) for k in range(gained, n + 1)) / 2**n
    assert counted(2 * n + 1, gained, lost, gained, lost, 2).chance == pytest.approx(wanted, rel=1e-9)


def test_it_is_computed_for_large_counts() -> None:
    assert counted(100_000, 60_000, 30_000, 40_000, 10_000, 10).chance < 1e-300
    assert counted(100_000, 50_000, 50_000, 25_000, 25_000, 10).chance > 0.5


RANDOM = np.random.default_rng(0)
LABELS = np.arange(200) % 4


@pytest.mark.parametrize("predicted", [np.zeros(200, int), np.full(200, -1), np.full(200, 3)])
def test_one_answer_for_all_is_named(predicted: np.ndarray) -> None:
    found = against_majority(LABELS, predicted)
    assert not found.beaten
    assert found.reason.startswith("all 200 predictions are one class")


def test_guessing_does_not_beat_it_and_learning_does() -> None:
    assert "no better than a constant answer" in against_majority(LABELS, RANDOM.permutation(LABELS)).reason
    half = np.where(RANDOM.random(200) < 0.5, LABELS, RANDOM.integers(0, 4, 200))
    assert against_majority(LABELS, half).beaten
    assert against_majority(LABELS, half).reason == ""


def test_luck_alone_is_rarely_taken_for_more() -> None:
    """Guesses with the frequencies of the labels, one class the largest: at most one in twenty passes."""
    labels = np.repeat([0, 1, 2], [80, 60, 60])
    passed = sum(against_majority(labels, RANDOM.permutation(labels)).beaten for _ in range(400))
    assert passed <= 20


def test_an_unbalanced_set_is_beaten_by_those_who_find_the_rare_class() -> None:
    labels = np.repeat([0, 1], [190, 10])
    found = labels.copy()
    found[195:] = 0  # half of the rare class
    assert against_majority(labels, found).beaten
    found[0:3] = 1  # and false alarms, nearly as many
    assert not against_majority(labels, found).beaten


def test_samples_of_one_class_tell_nothing_and_a_few_all_right_do() -> None:
    assert "all 5 samples are of one class" in against_majority(np.zeros(5, int), np.zeros(5, int)).reason
    assert against_majority(np.array([0, 1]), np.array([0, 1])).beaten


# Luck, and choices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "samples", "share"), [(0, 5, (1, 3)), (3, 5, (1, 3)), (12, 28, (5, 28)), (28, 28, (27, 28)), (1, 1, (1, 9))]
)
def test_the_binomial_tail_in_exact_numbers(successes: int, samples: int, share: tuple[int, int]) -> None:
    p = Fraction(*share)
    wanted = sum(comb(samples, k) * p**k * (1 - p) ** (samples - k) for k in range(successes, samples + 1))
    assert binomial_tail(successes, samples, float(p)) == pytest.approx(float(wanted), rel=1e-9)


def test_the_binomial_tail_at_its_ends() -> None:
    assert (binomial_tail(0, 0, 0.5), binomial_tail(1, 3, 0.0), binomial_tail(3, 3, 1.0)) == (1.0, 0.0, 1.0)


def test_the_best_of_many_guesses_is_rarely_taken_for_more() -> None:
    """Sixty samples of four classes, forty epochs that guess: the best of them beats the constant answer by itself too often."""
    labels, random = np.arange(60) % 4, np.random.default_rng(1)
    alone = allowed = 0
    for _ in range(200):
        epochs = [against_majority(labels, random.integers(0, 4, 60)) for _ in range(40)]
        best = max(epochs, key=lambda found: found.correct)
        alone += best.beaten
        allowed += best.beaten_by_mean([found.clean_accuracy for found in epochs])
    assert alone > 20  # more than one in ten
    assert allowed <= 6


def test_what_was_learnt_passes_although_it_was_chosen() -> None:
    labels, random = np.arange(30) % 6, np.random.default_rng(2)
    passed = 0
    for _ in range(100):
        half = [against_majority(labels, np.where(random.random(30) < 0.5, labels, random.integers(0, 6, 30))) for _ in range(40)]
        passed += max(half, key=lambda found: found.correct).beaten_by_mean([found.clean_accuracy for found in half])
    assert passed == 100
