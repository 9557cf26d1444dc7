"""choice.json against the claims: what a forged table could say is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from vsparse_check.choice_check import check_choice
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
