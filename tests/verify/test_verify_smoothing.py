"""Randomised smoothing: exact Clopper-Pearson limits in rationals, radii, coverage on networks whose probabilities are known, the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from math import comb, erfc, sqrt
from pathlib import Path

import numpy as np
import pytest
from verify_nets import dataset_of, dense_graph

from vsparse.errors import InputError
from vsparse.stages.verify.smoothing import ABSTAIN, Sampling, certified_radius, p_lower, smooth


def tail(votes: int, draws: int, p: Fraction) -> Fraction:
    """Returns P[Binomial(draws, p) >= votes], exactly."""
    return sum((comb(draws, k) * p**k * (1 - p) ** (draws - k) for k in range(votes, draws + 1)), Fraction(0))


@pytest.mark.parametrize(("draws", "alpha"), [(1, 0.4), (10, 0.001), (40, 0.05), (100, 0.001)])
def test_the_limit_is_the_largest_rejected_p_in_rationals(draws: int, alpha: float) -> None:
    for votes in sorted({1, draws // 3 + 1, draws // 2 + 1, draws - 1, draws} & set(range(1, draws + 1))):
        lower = p_lower(votes, draws, alpha)
        assert 0 < lower < 1
        assert tail(votes, draws, Fraction(lower)) <= Fraction(alpha)
        assert tail(votes, draws, Fraction(lower * (1 + 1e-6))) > Fraction(alpha), "not looser than it has to be"
    assert p_lower(0, draws, alpha) == 0
    assert p_lower(draws + 1, draws, alpha) == 0


def test_all_votes_give_the_closed_form() -> None:
    # Votes of all draws: p^n = α.
    for draws in (10, 1000, 10**5, 10**8):
        wanted = 0.001 ** (1 / draws)
        assert p_lower(draws, draws, 0.001) == pytest.approx(wanted, rel=1e-7)
        assert p_lower(draws, draws, 0.001) < wanted


def test_limits_and_radii_grow_with_votes_and_with_draws() -> None:
    by_votes = [p_lower(votes, 200, 0.001) for votes in range(201)]
    assert by_votes == sorted(by_votes)
    by_draws = [certified_radius(p_lower(draws * 9 // 10, draws, 0.001), 0.5) for draws in (100, 1000, 10_000, 10**6)]
    assert by_draws == sorted(by_draws)
    assert by_draws[0] < by_draws[-1] < 0.5 * 1.2815516
    assert p_lower(90, 100, 0.01) > p_lower(90, 100, 0.001)


@pytest.mark.parametrize("p", [0.5000001, 0.51, 0.6, 0.8413447460685429, 0.99, 0.9999, 1 - 1e-9, 1 - 2.0**-53])
def test_radii_are_rounded_down(p: float) -> None:
    radius = certified_radius(p, 1.0)
    # Φ(radius) <= p, by the complementary error function of the C library.
    assert erfc(radius / sqrt(2)) / 2 >= (1 - p) * (1 - 1e-12)
    assert erfc((radius + 1e-6) * (1 + 1e-6) / sqrt(2)) / 2 < 1 - p
    assert certified_radius(p, 0.25) <= radius * 0.25
    assert certified_radius(0.8413447460685429, 2.0) == pytest.approx(2.0, abs=1e-6)


def test_nothing_is_claimed_of_half_or_less() -> None:
    assert certified_radius(0.5, 1.0) == 0
    assert certified_radius(0.0, 1.0) == 0
    assert certified_radius(float("nan"), 1.0) == 0


def test_claims_hold_for_a_linear_network_whose_probability_is_known(write: Callable[..., Path]) -> None:
    """Logits (x0, t): the class is 0 where x0 > t, so p = Φ((x0 − t)/σ) and the true radius of the smoothed network is x0 − t itself."""
    model = write(dense_graph(2, ([[1, 0], [0, 0]], [0, 0.5])))
    distance, sigma, alpha, runs = 0.15, 0.25, 0.1, 150
    data = dataset_of(np.full((runs, 2), 0.5 + distance), [0] * runs, 2)
    result = smooth(model, data, Sampling(sigma, n0=20, n=200, alpha=alpha, seed=3))
    radii = np.array([claim.radius for claim in result.claims if claim.predicted == 0])
    assert len(radii) > 140
    # A claim is false where its radius exceeds the true one; of so many that happens to a share of about α, at most.
    false = int((radii > distance).sum())
    assert 1 <= false <= alpha * runs + 3 * sqrt(alpha * runs)
    assert np.median(radii) > 0.5 * distance, "and not because nothing is claimed"
    votes = np.array([claim.votes for claim in result.claims])
    assert votes.mean() == pytest.approx(200 * (1 - erfc(distance / sigma / sqrt(2)) / 2), abs=2)


def test_it_abstains_at_a_tie_and_never_claims_without_votes(write: Callable[..., Path]) -> None:
    tie = write(dense_graph(2, ([[1, 0], [0, 1]], [0, 0])))
    data = dataset_of(np.full((6, 2), 0.5), [0] * 6, 2)
    result = smooth(tie, data, Sampling(0.5, n0=10, n=300, alpha=0.001))
    assert [claim.predicted for claim in result.claims] == [ABSTAIN] * 6
    assert [claim.radius for claim in result.claims] == [0] * 6
    assert result.abstained == 6
    assert result.accuracy() == 0
    broken = write(dense_graph(2, ([[3e38, 3e38], [0, 0]], [3e38, 0])), "overflow.onnx")
    result = smooth(broken, data, Sampling(0.01, n0=10, n=50))
    assert {claim.predicted for claim in result.claims} == {ABSTAIN}
    assert {claim.votes for claim in result.claims} == {0}, "an output that is not finite is no vote"


def test_the_seed_decides_everything_and_the_file_says_what_it_is(write: Callable[..., Path], tmp_path: Path) -> None:
    model = write(dense_graph(2, ([[1, 0], [0, 1]], [0, 0])))
    data = dataset_of(np.array([[0.9, 0.2], [0.6, 0.4], [0.1, 0.8]]), [0, 0, 0], 2)
    sampling = Sampling(0.3, n0=10, n=300, alpha=0.01, seed=5)
    counted: list[tuple[int, int]] = []
    first = smooth(model, data, sampling, data_name="three", progress=lambda done, total: counted.append((done, total)))
    assert counted == [(1, 3), (2, 3), (3, 3)]
    assert smooth(model, data, sampling).claims == first.claims
    assert smooth(model, data, sampling, samples=2).claims == first.claims[:2]
    assert smooth(model, data, Sampling(0.3, n0=10, n=300, alpha=0.01, seed=6)).claims != first.claims
    assert first.claims[2].predicted == 1
    assert first.accuracy() == pytest.approx(2 / 3)
    assert first.accuracy(10.0) == 0
    first.write(tmp_path)
    content = json.loads((tmp_path / "smoothing.json").read_text())
    assert content["kind"] == "probabilistic"
    assert (content["sigma"], content["n0"], content["n"], content["alpha"], content["seed"]) == (0.3, 10, 300, 0.01, 5)
    assert content["model"]["sha256"] == first.model["sha256"]
    assert "alpha" in content["meaning"]
    assert "assumption" in content["assumption"]
    assert len(content["claims"]) == 3
    assert not (tmp_path / "certificate.json").exists()


@pytest.mark.parametrize(
    "bad", [{"sigma": 0.0}, {"sigma": float("nan")}, {"sigma": -1.0}, {"alpha": 0.0}, {"alpha": 0.5}, {"n": 0}, {"n0": 0}, {"n": 10**10}]
)
def test_unusable_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Sampling(**{"sigma": 0.25, **bad})  # type: ignore[arg-type]
