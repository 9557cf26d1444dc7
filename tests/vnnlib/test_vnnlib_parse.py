"""VNN-LIB to normal form: examples by hand, and random formulas against their own truth tables."""

from __future__ import annotations

import gzip
import os
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vsparse.vnnlib import Constraint, InputBox, Query, read_vnnlib, satisfied

DECLARED = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= X_1 0.1))(assert (<= X_1 2e-1))"


def read(tmp_path: Path, text: str) -> Query:
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    return read_vnnlib(path)


def test_numbers_are_exact(tmp_path: Path) -> None:
    query = read(tmp_path, DECLARED + BOX + "(assert (<= Y_0 1.5E+1))(assert (>= Y_1 .5))")
    (case,) = query.cases
    assert case.box == InputBox((Fraction(-1), Fraction(1, 10)), (Fraction(1), Fraction(1, 5)))
    assert case.unsafe == ((Constraint(((0, Fraction(1)),), Fraction(15)), Constraint(((1, Fraction(-1)),), Fraction(-1, 2))),)


def test_disjunction_of_inputs_gives_several_boxes_and_keeps_the_outputs_of_each(tmp_path: Path) -> None:
    text = "(assert (or (and (<= X_0 -0.5) (<= Y_0 Y_1)) (and (>= X_0 0.5) (<= Y_1 Y_0)) (and (>= X_0 0.5) (>= Y_0 3))))"
    query = read(tmp_path, DECLARED + BOX + text)
    assert [(case.box.lower[0], case.box.upper[0], len(case.unsafe)) for case in query.cases] == [
        (-1, Fraction(-1, 2), 1),
        (Fraction(1, 2), 1, 2),
    ]


def test_case_without_inputs_is_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, DECLARED + BOX + "(assert (>= X_0 1.0000000000000000000000001))(assert (<= Y_0 0))").cases == ()


def test_constants_decide_or_vanish(tmp_path: Path) -> None:
    assert read(tmp_path, DECLARED + BOX + "(assert (<= 1 0))").cases == ()
    assert read(tmp_path, DECLARED + BOX + "(assert (<= 0 1))").cases[0].unsafe == ((),)


def test_linear_expressions_are_collected(tmp_path: Path) -> None:
    query = read(tmp_path, DECLARED + BOX + "(assert (<= (+ (* 2 Y_0) (- Y_1) 1) (- (* Y_0 0.5) 3)))(assert (<= (* -2 X_0) 1))")
    (case,) = query.cases
    assert case.unsafe == ((Constraint(((0, Fraction(3, 2)), (1, Fraction(-1))), Fraction(-4)),),)
    assert case.box.lower[0] == Fraction(-1, 2)


def test_gzip_and_plain_read_alike_and_comments_are_ignored(tmp_path: Path) -> None:
    text = "; a comment with (parentheses\n" + DECLARED + BOX + "(assert (<= Y_0 ; here too )\n 1))"
    packed = tmp_path / "p.vnnlib.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_vnnlib(packed) == read(tmp_path, text)


def test_random_formulas_mean_what_they_say(tmp_path: Path) -> None:
    """The normal form is true at a point exactly where the formula is, on a grid that hits every bound."""
    dice = random.Random(7)
    grid = [Fraction(k, 2) for k in range(-3, 4)]

    def formula(depth: int) -> tuple[str, object]:
        kind = dice.choice(["and", "or"]) if depth else "atom"
        if kind == "atom":
            variable, number = dice.choice(["X_0", "X_1", "Y_0", "Y_1"]), dice.choice(grid)
            operator = dice.choice(["<=", ">="])
            sides = [variable, str(float(number))] if dice.random() < 0.5 else [str(float(number)), variable]
            return f"({operator} {sides[0]} {sides[1]})", (operator, *sides)
        parts = [formula(depth - 1) for _ in range(dice.randint(1, 3))]
        return f"({kind} {' '.join(text for text, _ in parts)})", (kind, [meaning for _, meaning in parts])

    def true(meaning: object, point: dict[str, Fraction]) -> bool:
        assert isinstance(meaning, tuple)
        if meaning[0] in ("and", "or"):
            return (all if meaning[0] == "and" else any)(true(part, point) for part in meaning[1])
        a, b = (point[side] if side in point else Fraction(side) for side in meaning[1:])
        return a <= b if meaning[0] == "<=" else a >= b

    outer = "".join(f"(assert (>= {x} -1.5))(assert (<= {x} 1.5))" for x in ("X_0", "X_1"))
    for _ in range(40):
        asserted = [formula(dice.randint(0, 3)) for _ in range(dice.randint(1, 3))]
        query = read(tmp_path, DECLARED + outer + "".join(f"(assert {text})" for text, _ in asserted))
        for _ in range(60):
            point = {name: dice.choice(grid) for name in ("X_0", "X_1", "Y_0", "Y_1")}
            x = np.array([point["X_0"], point["X_1"]], dtype=np.float64)
            y = np.array([point["Y_0"], point["Y_1"]], dtype=np.float64)
            found = any(case.box.contains(x) and any(satisfied(one, y) for one in case.unsafe) for case in query.cases)
            assert found == all(true(meaning, point) for _, meaning in asserted)


def test_outward_box_contains_and_inward_box_is_contained() -> None:
    dice = random.Random(3)
    values = sorted(Fraction(dice.randint(-(10**30), 10**30), 10 ** dice.randint(0, 60)) for _ in range(400))
    region = InputBox(tuple(values[:200]), tuple(values[200:]))
    lower, upper = region.outward()
    assert all(Fraction(a) <= b for a, b in zip(lower.tolist(), region.lower, strict=True))
    assert all(Fraction(a) >= b for a, b in zip(upper.tolist(), region.upper, strict=True))
    low, high = region.inward()
    assert region.contains(low)
    assert region.contains(high)
    assert not region.contains(np.nextafter(low, np.float32(-np.inf)))
    # Inward is the largest such box: one more step leaves the region, at every single end.
    for i in range(len(low)):
        assert Fraction(float(np.nextafter(low[i], np.float32(-np.inf)))) < region.lower[i]
        assert Fraction(float(np.nextafter(high[i], np.float32(np.inf)))) > region.upper[i]


def test_number_between_two_floats_has_no_float_inside() -> None:
    region = InputBox((Fraction(1, 10),), (Fraction(1, 10),))
    lower, upper = region.inward()
    assert lower[0] > upper[0]
    assert region.outward()[0][0] < region.outward()[1][0]


def test_outputs_that_are_not_finite_are_never_unsafe() -> None:
    constraint = Constraint(((0, Fraction(1)),), Fraction(0))
    assert satisfied((constraint,), np.array([-1.0, 0.0]))
    assert not satisfied((constraint,), np.array([-np.inf, 0.0]))
    assert not satisfied((constraint,), np.array([-1.0, np.nan]))
    assert not constraint.holds(np.array([np.nan]))


def test_competition_properties_are_read() -> None:
    folder = Path(os.environ.get("VSPARSE_DATA", "/nowhere")).parent / "vnncomp"
    if not folder.is_dir():
        pytest.skip("VSPARSE_DATA has no vnncomp folder beside it")
    query = read_vnnlib(folder / "acasxu" / "prop_2.vnnlib.gz")
    assert (query.inputs, query.outputs, len(query.cases), [len(one) for one in query.cases[0].unsafe]) == (5, 5, 1, [4])
    query = read_vnnlib(folder / "mnistfc" / "prop_0_0.03.vnnlib.gz")
    assert (query.inputs, query.outputs, [len(one) for one in query.cases[0].unsafe]) == (784, 10, [1] * 9)
