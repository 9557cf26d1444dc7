"""Perturbation sets: exact numbers as they were written, refusals, forms in recipe and certificate, and words."""

from __future__ import annotations

import copy
import json
import pickle
from fractions import Fraction
from math import nan
from typing import Any

import pytest
from pydantic import ValidationError

from vsparse.errors import InputError
from vsparse.perturbation import PerturbationSet, WrittenFraction
from vsparse.recipe import Recipe


@pytest.mark.parametrize(
    ("given", "text", "value"),
    [
        ("8/255", "8/255", Fraction(8, 255)),
        ("0.10", "0.10", Fraction(1, 10)),
        ("1e-3", "1e-3", Fraction(1, 1000)),
        (0.1, "0.1", Fraction(1, 10)),
        (2, "2", Fraction(2)),
        (Fraction(3, 7), "3/7", Fraction(3, 7)),
    ],
)
def test_a_number_is_exact_and_prints_as_it_was_written(given: Any, text: str, value: Fraction) -> None:
    number = PerturbationSet(epsilon=given).epsilon
    assert (number, str(number), f"{number}") == (value, text, text)
    assert hash(number) == hash(value)
    for same in (copy.copy(number), copy.deepcopy(number), pickle.loads(pickle.dumps(number))):
        assert isinstance(same, WrittenFraction)
        assert (same, str(same)) == (value, text)
    assert type(number * 2) is Fraction
    assert float(number) == float(value)


@pytest.mark.parametrize("bad", ["", "x", "1/0", "-0.1", "1e7", "1e-13", "9" * 41, "1e9999", nan, True, None, [1], "nan"])
def test_what_is_no_number_of_a_sensible_size_is_refused(bad: Any) -> None:
    for key in ("epsilon", "brightness", "contrast"):
        with pytest.raises(ValidationError):
            PerturbationSet.model_validate({"epsilon": "0.1", key: bad})
    with pytest.raises(InputError, match=r"the property asked for: epsilon: .*"):
        PerturbationSet.parse("the property asked for", epsilon=bad)


def test_a_key_that_is_not_known_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r'here: brigthness is not a known key.*"brightness"'):
        PerturbationSet.parse("here", epsilon="0.1", brigthness="0.2")


def test_the_form_in_a_certificate_is_that_of_earlier_ones() -> None:
    assert PerturbationSet(epsilon="0.1").model_dump_json() == '{"norm":"linf","epsilon":"0.1","clip":[0.0,1.0]}'
    written = PerturbationSet(norm="l2", epsilon="0", brightness="0.20", contrast="1/3").model_dump_json()
    assert written == '{"norm":"l2","epsilon":"0","clip":[0.0,1.0],"brightness":"0.20","contrast":"1/3"}'
    assert PerturbationSet.model_validate_json(written).model_dump_json() == written
    assert json.loads(PerturbationSet(epsilon=0, brightness="0.0", contrast=0).model_dump_json()) == {
        "norm": "linf",
        "epsilon": "0",
        "clip": [0.0, 1.0],
    }


def test_the_recipe_states_it_by_its_keys() -> None:
    keys = {"norm": "l1", "epsilon": "2/255", "brightness": "0.1", "contrast": "0.2", "samples": 7}
    found = Recipe.model_validate({"name": "t", "property": keys}).property.perturbation
    assert found == PerturbationSet(norm="l1", epsilon="2/255", brightness="0.1", contrast="0.2")
    assert str(found.epsilon) == "2/255"
    assert found.box_radius == Fraction(2, 255) + Fraction(1, 10) + Fraction(1, 10)


def test_every_member_lies_in_the_box_of_its_radius() -> None:
    asked = PerturbationSet(epsilon="1/20", brightness="1/10", contrast="1/4")
    for x0 in (Fraction(k, 8) for k in range(9)):
        for b in (-asked.brightness, asked.brightness):
            for c in (-asked.contrast, asked.contrast):
                for delta in (-asked.epsilon, asked.epsilon):
                    moved = min(max(x0 + b + c * (x0 - Fraction(1, 2)) + delta, Fraction(0)), Fraction(1))
                    assert abs(moved - x0) <= asked.box_radius


def test_a_copy_with_another_radius_keeps_the_rest() -> None:
    one = PerturbationSet(norm="l2", epsilon="0.5", clip=(-1.0, 2.0), contrast="1/3")
    assert one.with_epsilon("3/4") == PerturbationSet(norm="l2", epsilon="3/4", clip=(-1.0, 2.0), contrast="1/3")


@pytest.mark.parametrize(
    ("keys", "label", "sentence"),
    [
        ({"epsilon": "8/255"}, "epsilon 8/255 (l∞)", "any change of each pixel by up to 8/255"),
        (
            {"norm": "l2", "epsilon": "0.5"},
            "epsilon 0.5 (l2)",
            "any change of the pixels whose squares add up to no more than the square of 0.5",
        ),
        (
            {"epsilon": "0", "brightness": "0.1"},
            "epsilon 0 (l∞), brightness ±0.1",
            "a change of brightness by up to 0.1 for all pixels alike",
        ),
        (
            {"norm": "l1", "epsilon": "1", "brightness": "0.1", "contrast": "1/5"},
            "epsilon 1 (l1), brightness ±0.1, contrast ±1/5",
            "a change of brightness by up to 0.1 for all pixels alike, together with a change of contrast by up to a fraction of 1/5, "
            "together with any change of the pixels that adds up to no more than 1",
        ),
    ],
)
def test_words(keys: dict[str, Any], label: str, sentence: str) -> None:
    stated = PerturbationSet(**keys)
    assert (stated.label(), stated.sentence()) == (label, sentence)


def test_plain_balls_are_boxes_and_nothing_else_is() -> None:
    assert PerturbationSet(epsilon="0.1").is_box
    assert not PerturbationSet(norm="l2", epsilon="0.1").is_box
    assert not PerturbationSet(epsilon="0.1", contrast="0.1").is_box
    assert PerturbationSet(epsilon="0.1").rounding == 0.0
    assert PerturbationSet(epsilon="0.1", brightness="0.1", clip=(-3.0, 2.0)).rounding == 3 * 2.0**-24


def test_a_radius_beyond_the_data_range_is_refused() -> None:
    """8 where 8/255 was meant; the whole range itself, other norms and radii of features are questions."""
    with pytest.raises(InputError, match=r"property.epsilon = 8 is more than 1, the width of the data range.*8/255"):
        PerturbationSet(epsilon="8").require_within_range("property.epsilon")
    for asked in (
        {"epsilon": "1"},
        {"epsilon": "8", "norm": "l2"},
        {"epsilon": "8", "scales": ("1/16",)},
        {"epsilon": "2", "clip": (-1.0, 1.0)},
    ):
        PerturbationSet(**asked).require_within_range()
