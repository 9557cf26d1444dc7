"""Properties other than l∞ balls, from the question to the certificate: verdicts by hand, attacks, files, audit, curve."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from verify_nets import dataset_of, dense_graph

from vsparse.bounds import member
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import InputError, UnavailableError
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import Certificate, certify, read_certificate, write_certificate
from vsparse.stages.verify.attack import pgd
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.cross_check import cross_check
from vsparse.stages.verify.curve import curve
from vsparse.stages.verify.deployed import read_model
from vsparse.stages.verify.spaces import space

SETTINGS = Verify(batch_size=8, attack_steps=20, attack_restarts=3)
FP32 = CONTRACTS["fp32"]


def verdicts(model: Path, data: Dataset, **asked: str) -> list[str]:
    certificate = certify(model, data, PerturbationSet(**asked), FP32, SETTINGS)
    return [claim.verdict for claim in certificate.claims]


# Logits (x0, x1) at (3/4, 1/4): the nearest point of the other class is (1/2, 1/2), at l∞ 1/4, l2 1/√8 = 0.35355 and l1 1/2.
@pytest.mark.parametrize(("norm", "below", "above"), [("linf", "0.2499", "0.2501"), ("l2", "0.3535", "0.3537"), ("l1", "0.4999", "0.5001")])
def test_the_exact_radius_of_a_linear_network_in_each_norm(difference: Path, norm: str, below: str, above: str) -> None:
    data = dataset_of(np.array([[0.75, 0.25]]), [0], 2)
    assert verdicts(difference, data, norm=norm, epsilon=below) == ["certified"]
    assert verdicts(difference, data, norm=norm, epsilon=above) == ["falsified"]


def test_brightness_and_contrast_by_hand(write: Callable[..., Path]) -> None:
    # Logits (x0, 2·x1): at (3/4, 1/4) the margin is 3/4 + b + c/4 − 2(1/4 + b − c/4) = 1/4 − b + 3c/4.
    model = write(dense_graph(2, ([[1, 0], [0, 2]], [0, 0])))
    data = dataset_of(np.array([[0.75, 0.25]]), [0], 2)
    for asked, verdict in (
        ({"brightness": "0.2499"}, "certified"),
        ({"brightness": "0.2501"}, "falsified"),
        ({"contrast": "0.3333"}, "certified"),
        ({"contrast": "0.3334"}, "falsified"),
        ({"brightness": "0.1", "contrast": "0.1999"}, "certified"),
        ({"brightness": "0.1", "contrast": "0.2001"}, "falsified"),
        # With ‖δ‖ <= 0.01 the margin falls by 3·0.01 in l∞, by √5·0.01 in l2, by 2·0.01 in l1.
        ({"brightness": "0.2199", "epsilon": "0.01"}, "certified"),
        ({"brightness": "0.2201", "epsilon": "0.01"}, "falsified"),
        ({"brightness": "0.2276", "epsilon": "0.01", "norm": "l2"}, "certified"),
        ({"brightness": "0.2277", "epsilon": "0.01", "norm": "l2"}, "falsified"),
        ({"brightness": "0.2299", "epsilon": "0.01", "norm": "l1"}, "certified"),
        ({"brightness": "0.2301", "epsilon": "0.01", "norm": "l1"}, "falsified"),
    ):
        assert verdicts(model, data, **{"epsilon": "0", **asked}) == [verdict], asked


def test_the_linear_form_proves_what_the_box_cannot(write: Callable[..., Path]) -> None:
    # One brightness for all: the difference of two pixels does not change, until one of them is clipped.
    model = write(dense_graph(2, ([[1, 0], [0, 1]], [0, 0])))
    data = dataset_of(np.array([[0.55, 0.45]]), [0], 2)
    assert verdicts(model, data, epsilon="0.3") == ["falsified"]
    assert verdicts(model, data, epsilon="0", brightness="0.3") == ["certified"]


def test_attacks_return_members_and_use_the_whole_region(digits_conv: Path, digits: Dataset) -> None:
    model = read_model(digits_conv)
    params = model.graph.tensors(torch.float32)
    x, labels = digits.inputs()[:12].astype(np.float32), digits.labels[:12]
    clean = pgd(
        model.graph, params, x, space(x, PerturbationSet(epsilon=Fraction(0))), labels, [(0, i) for i in range(12)], steps=1, restarts=1
    )
    for norm, radius in (("l2", "1"), ("l1", "3"), ("linf", "1/10")):
        for b, c in (("0", "0"), ("1/5", "1/5")):
            allowed = PerturbationSet(norm=norm, epsilon=Fraction(radius), brightness=Fraction(b), contrast=Fraction(c))
            there = space(x, allowed)
            seeds = [(1, i) for i in range(12)]
            found = pgd(model.graph, params, x, there, labels, seeds, steps=12, restarts=3)
            again = pgd(model.graph, params, x, there, labels, seeds, steps=12, restarts=3)
            assert torch.equal(found.inputs, again.inputs)
            for point, sample, hint in zip(found.inputs, torch.from_numpy(x), found.pairs.tolist(), strict=True):
                assert member(point, sample, allowed, (hint[0], hint[1]))
            # The deeper the margin falls, the more of the region is used: on all samples by much more than nothing.
            assert bool((found.margins <= clean.margins).all())
            assert float((clean.margins - found.margins).mean()) > 0.5
            one = there.random(seeds, 1)
            assert all(member(p, s, allowed) for p, s in zip(there.point(one)[:3], torch.from_numpy(x)[:3], strict=True))


@pytest.fixture(scope="module")
def found(digits_conv: Path, digits: Dataset) -> Certificate:
    """60 digits under changes of brightness, contrast and a small l2 ball."""
    asked = PerturbationSet(norm="l2", epsilon="0.1", brightness="0.05", contrast="1/20")
    return certify(digits_conv, digits, asked, FP32, SETTINGS, samples=60)


def test_certified_regions_withstand_random_members_and_the_audit(found: Certificate, digits_conv: Path, digits: Dataset) -> None:
    counts = found.summary
    assert counts.certified > 20
    checked = audit(digits_conv, digits, found, samples=4)
    assert checked.passed, checked.reason
    assert checked.points == 4 * 13


def test_a_falsified_claim_keeps_a_certain_member(digits_conv: Path, digits: Dataset) -> None:
    certificate = certify(digits_conv, digits, PerturbationSet(epsilon="0", brightness="0.6", contrast="0.9"), FP32, SETTINGS, samples=16)
    examples = certificate.counterexamples
    assert examples is not None
    assert len(examples) > 4
    allowed = certificate.property
    for point, original in zip(examples.inputs, examples.originals, strict=True):
        assert member(torch.from_numpy(point), torch.from_numpy(original), allowed), "without any hint"


def test_certificates_keep_the_property_and_plain_ones_their_hash(found: Certificate, tmp_path: Path) -> None:
    digest = write_certificate(tmp_path / "certificate.json", found)
    again = read_certificate(tmp_path / "certificate.json")
    assert again.digest() == digest
    assert again.property == PerturbationSet(norm="l2", epsilon="0.1", brightness="0.05", contrast="1/20")
    plain = PerturbationSet(epsilon="0.1")
    assert plain.model_dump(mode="json") == {"norm": "linf", "epsilon": "0.1", "clip": [0.0, 1.0]}
    assert PerturbationSet.model_validate({"epsilon": "0.1", "brightness": "0.0", "contrast": 0}) == plain
    assert json.loads(PerturbationSet(epsilon="0", contrast="1/3").model_dump_json()) == {
        "norm": "linf",
        "epsilon": "0",
        "clip": [0.0, 1.0],
        "contrast": "1/3",
    }
    for bad in ({"norm": "l3"}, {"brightness": "-0.1"}, {"contrast": "x"}, {"brightness": [0]}):
        with pytest.raises(ValidationError):
            PerturbationSet.model_validate({"epsilon": "0.1", **bad})


def test_the_curve_keeps_the_norm_and_the_cross_check_says_that_it_has_no_bounds(digits_conv: Path, digits: Dataset) -> None:
    points = curve(digits_conv, digits, PerturbationSet(norm="l2", epsilon="0.2"), ("0", "0.2", "2"), FP32, SETTINGS, 16).points
    assert points[0].certified_accuracy > points[2].certified_accuracy
    wider = curve(digits_conv, digits, PerturbationSet(epsilon="0.2"), ("0.2",), FP32, SETTINGS, 16).points[0]
    assert points[1].certified_accuracy > wider.certified_accuracy, "an l∞ ball contains the l2 ball"
    with pytest.raises(UnavailableError, match="no second opinion"):
        cross_check(digits_conv, digits, PerturbationSet(norm="l2", epsilon="0.1"), FP32, 2)


def test_a_region_without_a_finite_range_is_refused(difference: Path) -> None:
    data = dataset_of(np.array([[0.75, 0.25]]), [0], 2)
    with pytest.raises((InputError, ValidationError)):
        certify(difference, data, PerturbationSet(epsilon="0", brightness="0.1", clip=(-np.inf, np.inf)), FP32, SETTINGS)
