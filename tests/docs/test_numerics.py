"""The tables of docs/numerics.md that state constants of the code state those of the code."""

from __future__ import annotations

import re
from math import log2
from pathlib import Path

import pytest

from vsparse.contract import CONTRACTS, FUNCTION_ERROR

PAGE = Path(__file__).resolve().parents[2] / "docs" / "numerics.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documents are not beside the tests")

FIELDS = ("storage", "operand", "accumulate", "order", "subnormals")


def rows(section: str) -> list[list[str]]:
    """Returns the cells of the tables of a section, without the ticks of code."""
    text = re.split(rf"^#+ {re.escape(section)}\.? .*$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1]
    lines = re.split(r"^#", text, maxsplit=1, flags=re.M)[0].splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_contracts_are_those_of_the_code() -> None:
    head, _, *stated = rows("2")
    assert tuple(head[1:6]) == FIELDS
    assert {row[0]: tuple(row[1:6]) for row in stated} == {
        name: tuple(str(getattr(contract, field)) for field in FIELDS) for name, contract in CONTRACTS.items()
    }


def test_the_assumed_error_of_functions_is_that_of_the_code() -> None:
    head, _, stated = rows("3.2")
    powers = "⁰¹²³⁴⁵⁶⁷⁸⁹"
    found = {
        name: f"2⁻{''.join(powers[int(digit)] for digit in str(round(-log2(error))))}" for name, error in FUNCTION_ERROR.items() if error
    }
    assert dict(zip(head[1:], stated[1:], strict=True)) == found
