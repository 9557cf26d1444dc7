"""choice.json against the claims: what a forged table could say is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from vsparse.artifact.forms import FORMS
from vsparse_check.choice_check import ABOUT, check_choice
from vsparse_check.refusal import NotConfirmed

CERTIFICATES = {
    folder: {"contract": {"name": contract}, "summary": {"certified_accuracy": certified, "clean_accuracy": 0.9}}
    for folder, contract, certified in (
        ("certificate", "fp32", 0.8),
        ("certificate/int8", "int8", 0.79),
        ("certificate/dense", "fp32", 0.85),
    )
}


def row(name: str, contract: str, certified: float, **more: Any) -> dict[str, Any]:
    told = {"name": name, "contract": contract, "certified_accuracy": certified, "clean_accuracy": 0.9}
    return told | {"points_lost": 100 * (0.8 - certified), "gates": [], "competes": name != "dense", "chosen": name == "int8"} | more


CHOICE = {"chosen": "int8", "rows": [row("sparse", "fp32", 0.8), row("int8", "int8", 0.79), row("dense", "fp32", 0.85)]}
GATES = [{"name": "a form to deploy", "passed": True}]


def test_a_table_that_follows_from_the_claims_is_confirmed() -> None:
    check_choice(copy.deepcopy(CHOICE), CERTIFICATES, GATES)
    check_choice(copy.deepcopy(CHOICE), CERTIFICATES, None)


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (1, {"certified_accuracy": 0.8}, "int8 is not what the claims add up to"),
        (1, {"points_lost": 0.0}, "int8 is not what the claims add up to"),
        (1, {"points_lost": None}, "int8 is not what the claims add up to"),
        (1, {"clean_accuracy": 0.95}, "int8 is not what the claims add up to"),
        (1, {"contract": "fp32"}, "int8 is not what the claims add up to"),
        (1, {"name": "fp16"}, "not those that have a certificate"),
        (1, {"competes": False}, "the chosen form misses a gate"),
        (1, {"gates": [{"name": "bytes", "passed": False}]}, "the chosen form misses a gate"),
        (0, {"chosen": True}, "chosen is not the form that its table marks"),
        (1, {"chosen": False}, "chosen is not the form that its table marks"),
    ],
)
def test_a_forged_row_is_refused(index: int, change: dict[str, Any], words: str) -> None:
    forged = copy.deepcopy(CHOICE)
    forged["rows"][index] |= change  # type: ignore[index, call-overload]  # a document made by hand
    with pytest.raises(NotConfirmed, match=words):
        check_choice(forged, CERTIFICATES, GATES)


def test_a_choice_and_its_gate_say_the_same() -> None:
    with pytest.raises(NotConfirmed, match="a form to deploy is judged other"):
        check_choice(copy.deepcopy(CHOICE), CERTIFICATES, [{"name": "a form to deploy", "passed": False}])


def test_a_form_whose_gates_wait_is_not_judged_yet() -> None:
    waiting = copy.deepcopy(CHOICE)
    waiting["rows"][1]["gates"] = [{"name": "gates on the device", "passed": None}]  # type: ignore[index]  # a document made by hand
    check_choice(waiting, CERTIFICATES, [{"name": "a form to deploy", "passed": None}])
    with pytest.raises(NotConfirmed, match="a form to deploy is judged other"):
        check_choice(waiting, CERTIFICATES, GATES)
    with pytest.raises(NotConfirmed, match="a form to deploy is judged other"):
        check_choice(copy.deepcopy(CHOICE), CERTIFICATES, [{"name": "a form to deploy", "passed": None}])


def test_two_rows_of_one_form_are_refused() -> None:
    forged = copy.deepcopy(CHOICE)
    forged["rows"].insert(1, row("int8", "int8", 0.99))  # type: ignore[attr-defined]  # a document made by hand
    with pytest.raises(NotConfirmed, match="two rows of one form"):
        check_choice(forged, CERTIFICATES, GATES)


@pytest.mark.parametrize(
    ("limits", "gates", "refused"),
    [
        ({"choose": {"certified_loss": 0.02}}, {"points lost": True}, ""),
        ({"choose": {"certified_loss": 0.01}}, {"points lost": True}, ""),
        ({"choose": {"certified_loss": 0.005}}, {"points lost": True}, "points lost of int8"),
        ({"choose": {"certified_loss": 0.005}}, {}, "points lost of int8"),
        ({"choose": {"certified_loss": 0.005}}, {"points lost": None}, "points lost of int8"),
        ({"choose": {"certified_loss": 0}}, {}, ""),
        ({"gates": {"certified_accuracy": 0.8}}, {"certified accuracy": True}, "certified accuracy of int8"),
        ({"gates": {"certified_accuracy": 0.8, "int8_certified_accuracy": 0.7}}, {"certified accuracy": True}, ""),
        ({"gates": {"int8_certified_accuracy": 0.95}}, {"certified accuracy": True}, "certified accuracy of int8"),
    ],
)
def test_gates_of_a_form_are_judged_again_by_the_recipe(limits: dict[str, Any], gates: dict[str, Any], refused: str) -> None:
    choice = copy.deepcopy(CHOICE)
    told = [{"name": name, "passed": passed} for name, passed in gates.items()]
    common = [{"name": "certified accuracy", "passed": True}] if "certified_accuracy" in limits.get("gates", {}) else []
    choice["rows"][0] |= {"gates": common}  # type: ignore[index, call-overload]  # a document made by hand
    choice["rows"][1] |= {"gates": told}  # type: ignore[index, call-overload]  # as above
    if not refused:
        check_choice(choice, CERTIFICATES, GATES, limits)
        return
    with pytest.raises(NotConfirmed, match=f"{refused} is judged otherwise than recipe.toml asks for"):
        check_choice(choice, CERTIFICATES, GATES, limits)


def test_the_checker_knows_the_certificate_of_every_form():
    assert {form.name: form.folder for form in FORMS} == ABOUT
