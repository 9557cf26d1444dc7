"""Boxes with a radius for each input: against exact rationals, in the toolchain and in the checker."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vsparse.bounds import inner_ball_float32, region
from vsparse.bounds.membership import member
from vsparse.errors import InputError
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.properties import robustness
from vsparse_check.certificate import _claimed_region
from vsparse_check.predictions import _in_ball
from vsparse_check.refusal import Refuted
from vsparse_check.region import SampleRegions

SCALES = ("1/3", "0", "1", "0.07", "2")
SET = PerturbationSet(epsilon="0.1", scales=SCALES)
EXACT = [Fraction(1, 10) * Fraction(scale) for scale in SCALES]


def samples(count: int = 200) -> torch.Tensor:
    x = np.random.RandomState(0).uniform(0, 1, (count, 5, 1, 1)).astype(np.float32)
    x[0], x[1] = 0, 1
    return torch.from_numpy(x)


def clipped(value: float, radius: Fraction, sign: int) -> Fraction:
    return min(Fraction(1), max(Fraction(0), Fraction(value) + sign * radius))


def test_boxes_contain_the_exact_ones_and_little_more() -> None:
    x = samples()
    lower, upper = region(x, SET)
    ours = SampleRegions(_claimed_region(**SET.model_dump(mode="json")), x.flatten(1).double().numpy()).box
    inner = inner_ball_float32(x, SET.epsilon, SET.clip, SET.radii())
    assert inner[0].shape == inner[1].shape == x.shape
    for row in range(len(x)):
        for i, radius in enumerate(EXACT):
            value = x[row, i, 0, 0].item()
            low, high = clipped(value, radius, -1), clipped(value, radius, 1)
            for least, most in ((lower[row, i, 0, 0].item(), upper[row, i, 0, 0].item()), (ours.lower[row, i], ours.upper[row, i])):
                assert Fraction(float(least)) <= low
                assert Fraction(float(most)) >= high
                assert low - Fraction(float(least)) < Fraction(1, 2**50)
                assert Fraction(float(most)) - high < Fraction(1, 2**50)
            assert low <= Fraction(inner[0][row, i, 0, 0].item()) <= Fraction(value) <= Fraction(inner[1][row, i, 0, 0].item()) <= high
    # What nothing may change is a point, and not one rounding wide.
    assert torch.equal(lower[:, 1], x[:, 1].double())
    assert torch.equal(upper[:, 1], x[:, 1].double())
    assert np.array_equal(ours.lower[:, 1], ours.upper[:, 1])


def test_membership_is_exact_at_each_rim() -> None:
    x = samples()[0] * 0 + 0.5
    for i, radius in enumerate(EXACT):
        inside, outside = x.clone().double(), x.clone().double()
        edge = float(Fraction(1, 2) + radius)
        while Fraction(edge) > Fraction(1, 2) + radius:
            edge = float(np.nextafter(edge, 0))
        inside[i], outside[i] = edge, float(np.nextafter(edge, 2))
        assert member(inside, x, SET)
        assert not member(outside, x, SET)
    point = np.array([0.5] * 5, np.float32)
    moved = point.copy()
    moved[1] = np.nextafter(np.float32(0.5), np.float32(1))
    radii = _claimed_region(**SET.model_dump(mode="json")).radii(5)
    assert _in_ball(point, point, radii)
    assert not _in_ball(moved, point, radii)


def test_the_question_in_vnnlib_has_the_same_box() -> None:
    x = samples(3)[2].numpy()
    box = robustness(x, 0, 2, SET).cases[0].box
    for i, radius in enumerate(EXACT):
        assert box.lower[i] == clipped(float(x[i, 0, 0]), radius, -1)
        assert box.upper[i] == clipped(float(x[i, 0, 0]), radius, 1)


def test_what_is_stated_and_what_is_refused() -> None:
    assert "scales" not in PerturbationSet(epsilon="0.1").model_dump(mode="json")  # older certificates keep their bytes
    written = SET.model_dump(mode="json")
    assert written["scales"] == list(SCALES)
    assert PerturbationSet.model_validate(written) == SET
    assert SET.with_epsilon("0.2").radii()[0] == Fraction(2, 30)
    assert SET.box_radius == Fraction(1, 5)
    assert "the other 1 are fixed" in SET.sentence()
    for keys in (
        {"norm": "l2"},
        {"brightness": "0.1"},
        {"contrast": "0.1"},
        {"scales": ("-1",)},
        {"scales": ("0",) * 5},
        {"scales": ("x",)},
    ):
        with pytest.raises(ValidationError):
            PerturbationSet.model_validate({**written, **keys})
    with pytest.raises(InputError, match="5 radii"):
        region(torch.zeros(2, 4), SET)
    region_of = _claimed_region(**written)
    with pytest.raises(Refuted, match="5 radii, of inputs of 4"):
        SampleRegions(region_of, np.zeros((2, 4)))
    for keys in ({"norm": "l2"}, {"brightness": "0.1"}, {"scales": ["-1"]}, {"scales": ["0"] * 5}, {"scales": "11111"}, {"scales": [1.0]}):
        with pytest.raises(Refuted):
            _claimed_region(**{**written, **keys})  # type: ignore[arg-type]
