"""Audit, cross-check, curve and attack: they pass where all is well, and find what is planted."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from verify_nets import dataset_of, dense_graph

from vsparse import second_opinion
from vsparse.bounds import Rounding, inner_ball_float32
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import GateError
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import Certificate, certify
from vsparse.stages.verify import audit as audit_module
from vsparse.stages.verify.attack import margin, pgd
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.cross_check import cross_check
from vsparse.stages.verify.curve import curve, default_radii
from vsparse.stages.verify.deployed import read_model

FP32 = CONTRACTS["fp32"]


@pytest.fixture
def certificate(digits_conv: Path, digits: Dataset) -> Certificate:
    """The first twelve digits at 0.03."""
    return certify(digits_conv, digits, PerturbationSet(epsilon="0.03"), FP32, Verify(), samples=12)


def test_the_audit_passes_and_has_looked_everywhere(digits_conv: Path, digits: Dataset, certificate: Certificate) -> None:
    result = audit(digits_conv, digits, certificate, samples=4)
    assert result.passed
    assert result.reason == ""
    assert result.sessions == 8 + 1 + 2
    assert result.logits_checked == 9 * result.points * 10
    assert result.values_checked > 0
    # Zero would mean that nothing was rounded, one that the bound is reached.
    assert 0 < result.closest < 1
    assert result.record().passed is True


def test_the_audit_notices_an_error_term_that_is_too_small(
    digits_conv: Path, digits: Dataset, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Rounding.error
    monkeypatch.setattr(Rounding, "error", lambda self, node, inputs, box: honest(self, node, inputs, box) * 1e-3)
    result = audit(digits_conv, digits, certificate, samples=4)
    assert result.violations > 0
    assert not result.passed
    assert "violation(s), the first: " in result.reason


def test_the_audit_notices_logits_outside_their_enclosure(
    digits_conv: Path, digits: Dataset, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(*arguments: object) -> object:
        boxes, (lower, upper) = honest(*arguments)
        return boxes, (lower, lower + 0.5 * (upper - lower))

    honest = audit_module.enclosure
    monkeypatch.setattr(audit_module, "enclosure", shifted)
    assert "outside its proved enclosure" in audit(digits_conv, digits, certificate, samples=4).reason


def test_the_audit_notices_a_false_certificate(difference: Path) -> None:
    data = dataset_of([[0.75, 0.25]], [0], 2)
    honest = certify(difference, data, PerturbationSet(epsilon="0.3"), FP32, Verify()).claims[0]
    assert honest.verdict == "falsified"
    small = certify(difference, data, PerturbationSet(epsilon="0.2"), FP32, Verify())
    stated = small.property.with_epsilon("0.3")
    forged = small.model_copy(update={"property": stated, "claims": (small.claims[0].model_copy(update={"property": stated}),)})
    assert "misclassified" in audit(difference, data, forged).reason


def test_the_audit_wants_the_certified_file(write: Callable[..., Path], difference: Path) -> None:
    data = dataset_of([[0.75, 0.25]], [0], 2)
    certificate = certify(difference, data, PerturbationSet(epsilon="0.1"), FP32, Verify())
    other = write(dense_graph(2, ([[1, 0], [0, 1]], [0, 0.01])))
    with pytest.raises(GateError, match="another hash"):
        audit(other, data, certificate)


def test_a_certificate_under_real_is_audited_under_fp32(difference: Path) -> None:
    data = dataset_of([[0.75, 0.25]], [0], 2)
    result = audit(difference, data, certify(difference, data, PerturbationSet(epsilon="0.1"), CONTRACTS["real"], Verify()))
    assert (result.contract, result.passed) == ("fp32", True)


needs_second_opinion = pytest.mark.skipif(not second_opinion.is_available(), reason="auto_LiRPA is not installed")


@needs_second_opinion
@pytest.mark.parametrize("epsilon", ["0.01", "0.05", "0.2"])
def test_bounds_agree_with_auto_lirpa(digits_conv: Path, digits: Dataset, epsilon: str) -> None:
    result = cross_check(digits_conv, digits, PerturbationSet(epsilon=epsilon), FP32, 6)
    assert result.passed
    assert result.rows == 6 * 9
    assert abs(result.excess) < 1e-9
    assert abs(result.shortfall) < 1e-9
    assert result.excess_deployed < 0
    assert result.record().passed is True


@needs_second_opinion
def test_the_cross_check_notices_bounds_that_are_too_tight(digits_conv: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = second_opinion.crown_lower

    def loose(network: Any, lower: torch.Tensor, upper: torch.Tensor, *rest: Any) -> torch.Tensor:
        # At a point both are the output, which is asked first.
        return theirs(network, lower, upper, *rest) - 2e-4 * float((upper > lower).any())

    monkeypatch.setattr(second_opinion, "crown_lower", loose)
    result = cross_check(digits_conv, digits, PerturbationSet(epsilon="0.01"), FP32, 2)
    assert not result.passed
    assert "exceeds" in result.reason


@needs_second_opinion
def test_a_nan_fails_the_cross_check(digits_conv: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = second_opinion.crown_lower
    monkeypatch.setattr(second_opinion, "crown_lower", lambda *arguments: theirs(*arguments) * torch.nan)
    assert not cross_check(digits_conv, digits, PerturbationSet(epsilon="0.01"), FP32, 6).passed


def test_the_curve_falls_and_meets_the_certificate(digits_conv: Path, digits: Dataset, certificate: Certificate) -> None:
    radii = ("0.06", "0.03", "0")
    result = curve(digits_conv, digits, PerturbationSet(epsilon="0"), radii, FP32, Verify(attack_restarts=1), 12)
    assert [point.epsilon for point in result.points] == ["0", "0.03", "0.06"]
    for before, after in zip(result.points, result.points[1:], strict=False):
        assert after.certified_accuracy <= before.certified_accuracy
        assert after.robust_accuracy <= before.robust_accuracy
    assert all(point.certified_accuracy <= point.robust_accuracy <= point.clean_accuracy for point in result.points)
    assert result.points[0].certified_accuracy == result.points[0].clean_accuracy
    assert result.points[1].certified_accuracy >= certificate.summary.certified_accuracy
    assert result.points[1].epsilon_value == 0.03


def test_the_curve_searches_up_to_a_radius_only(digits_conv: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "vsparse.stages.verify.curve.certify",
        lambda *arguments, **named: asked.append(arguments[4].methods) or certify(*arguments, **named),  # type: ignore[func-returns-value]
    )
    result = curve(
        digits_conv,
        digits,
        PerturbationSet(epsilon="0"),
        ("0.01", "0.02"),
        FP32,
        Verify(attack_restarts=1, branch_domains=1),
        6,
        searched_to="0.01",
    )
    assert asked == [("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"), ("interval", "crown-ibp", "crown")]
    assert "beyond 0.01" in result.derived


def test_default_radii_are_exact() -> None:
    assert [Fraction(text) for text in default_radii("2/255")] == [Fraction(2, 255) * step / 5 for step in range(1, 11)]


def test_attacks_stay_inside_and_find_what_is_there(difference: Path) -> None:
    model = read_model(difference)
    x, labels = np.array([[[[0.75, 0.25]]], [[[0.9, 0.1]]]], dtype=np.float32), np.array([0, 0])
    box = inner_ball_float32(torch.from_numpy(x), Fraction(3, 10))
    found = pgd(model.graph, model.graph.tensors(torch.float32), x, box, labels, [(0, 0), (0, 1)], steps=10, restarts=3)
    assert ((found.inputs >= box[0]) & (found.inputs <= box[1])).all()
    assert found.margins[0] < 0
    # The worst margin of the second is 0.8 - 2 · 0.3.
    assert float(found.margins[1]) == pytest.approx(0.2, abs=1e-3)


def test_a_samples_attack_does_not_depend_on_its_neighbours(digits_conv: Path, digits: Dataset) -> None:
    model = read_model(digits_conv)
    params = model.graph.tensors(torch.float32)
    x, labels = digits.inputs(slice(0, 4)), digits.labels[:4]
    box = inner_ball_float32(torch.from_numpy(x), Fraction(1, 50))
    seeds = [(0, i) for i in range(4)]
    together = pgd(model.graph, params, x, box, labels, seeds, steps=3, restarts=3)
    alone = pgd(model.graph, params, x[2:3], (box[0][2:3], box[1][2:3]), labels[2:3], seeds[2:3], steps=3, restarts=3)
    assert float((together.inputs[2] - alone.inputs[0]).abs().max()) <= 1e-6


def test_a_margin_that_is_no_number_is_never_a_find() -> None:
    logits = torch.tensor([[1.0, 2.0], [float("nan"), 2.0], [float("inf"), 0.0]])
    assert margin(logits, torch.tensor([0, 0, 0])).tolist() == [-1.0, float("inf"), float("inf")]
