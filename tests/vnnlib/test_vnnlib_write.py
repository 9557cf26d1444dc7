"""What is written is read back the same, or, where a number has no finite decimal form, a little larger."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

from vsparse.vnnlib import Case, Constraint, InputBox, Query, read_vnnlib, write_vnnlib


def test_random_queries_come_back(tmp_path: Path) -> None:
    dice = random.Random(5)

    def number() -> Fraction:
        return Fraction(dice.randint(-999, 999), dice.choice([1, 2, 10, 125, 2**40]))

    path = tmp_path / "p.vnnlib"
    for _ in range(60):
        cases = {}
        for _ in range(dice.randint(1, 3)):
            ends = [sorted((number(), number())) for _ in range(2)]
            unsafe = {}
            for _ in range(dice.randint(1, 3)):
                rows = [tuple((j, c) for j in range(3) if (c := number())) for _ in range(dice.randint(1, 2))]
                unsafe[tuple(dict.fromkeys(Constraint(row, number()) for row in rows if row))] = None
            cases[InputBox(tuple(low for low, _ in ends), tuple(high for _, high in ends))] = tuple(unsafe)
        query = Query(2, 3, tuple(Case(region, unsafe) for region, unsafe in cases.items()))
        write_vnnlib(path, query, ["several\nlines", ""])
        assert scaled(read_vnnlib(path)) == scaled(query)


def scaled(query: Query) -> Query:
    """A constraint may come back with both sides multiplied by one number."""

    def one(constraint: Constraint) -> Constraint:
        factor = abs(constraint.coefficients[0][1])
        return Constraint(tuple((j, c / factor) for j, c in constraint.coefficients), constraint.bound / factor)

    return Query(
        query.inputs,
        query.outputs,
        tuple(Case(case.box, tuple(tuple(map(one, unsafe)) for unsafe in case.unsafe)) for case in query.cases),
    )


def test_robustness_is_written_as_comparisons(tmp_path: Path) -> None:
    region = InputBox((Fraction(0),), (Fraction(1, 8),))
    unsafe = tuple((Constraint(tuple(sorted(((1, Fraction(1)), (j, Fraction(-1))))), Fraction(0)),) for j in (0, 2))
    write_vnnlib(tmp_path / "p", Query(1, 3, (Case(region, unsafe),)), ["x"])
    text = (tmp_path / "p").read_text()
    assert text.startswith("; x\n(declare-const X_0 Real)\n")
    assert "(assert (>= X_0 0.0))\n(assert (<= X_0 0.125))" in text
    assert "(<= Y_1 Y_0)" in text
    assert "(<= Y_1 Y_2)" in text


def test_numbers_without_a_decimal_form_are_written_outward(tmp_path: Path) -> None:
    third = Fraction(1, 3)
    constraints = (
        Constraint(((0, Fraction(1)),), third),
        Constraint(((0, Fraction(-1)),), third),
        Constraint(((0, third), (1, Fraction(1))), third),
    )
    query = Query(1, 2, (Case(InputBox((third,), (2 * third,)), tuple((one,) for one in constraints)),))
    write_vnnlib(tmp_path / "p", query)
    (case,) = read_vnnlib(tmp_path / "p").cases
    assert third - Fraction(1, 10**50) < case.box.lower[0] < third
    assert 2 * third < case.box.upper[0] < 2 * third + Fraction(1, 10**50)
    first, second, third_one = (unsafe[0] for unsafe in case.unsafe)
    assert first.bound > third
    assert second.bound > third
    # Multiplied by 3, it is exact.
    assert third_one == Constraint(((0, Fraction(1)), (1, Fraction(3))), Fraction(1))


def test_nothing_is_unsafe(tmp_path: Path) -> None:
    write_vnnlib(tmp_path / "p", Query(1, 1, ()))
    assert read_vnnlib(tmp_path / "p") == Query(1, 1, ())
    always = Query(1, 1, (Case(InputBox((Fraction(0),), (Fraction(1),)), ((),)),))
    write_vnnlib(tmp_path / "p", always)
    assert read_vnnlib(tmp_path / "p") == always
