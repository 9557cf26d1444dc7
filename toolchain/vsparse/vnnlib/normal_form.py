"""Formulas to normal form: `and` distributed over `or`, boxes intersected, and cases with one box put together."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from vsparse.vnnlib.query import Case, Conjunction, Constraint, InputBox, Query
from vsparse.vnnlib.tokens import Text

# Of the whole property, once `and` is distributed over `or`.
MAX_TERMS = 100_000
MAX_STATEMENTS = 2_000_000


class InputBound(NamedTuple):
    """X_input <= value where `upper`, else X_input >= value."""

    input: int
    upper: bool
    value: Fraction


Atomic = InputBound | Constraint
# Atomic statements that hold together.
Term = list[Atomic]


def normal_form(text: Text, inputs: int, outputs: int, formulas: Sequence[tuple[Any, int]], offsets: dict[tuple[str, int], int]) -> Query:
    """Returns the cases of the conjunction of `formulas`, each with its offset; `offsets` says where a variable is declared.

    Cases without any input (a lower bound above the upper) are left out. InputError where the expansion is too large or an input has
    no lower or no upper bound.
    """
    common: Term = []
    terms: list[Term] = [[]]
    for formula, offset in formulas:
        expanded = _expand(text, offset, formula)
        if len(expanded) == 1:
            common += expanded[0]
        else:
            terms = _product(text, offset, terms, expanded)
    if len(terms) * inputs > MAX_STATEMENTS:
        text.refuse(0, f"the property has {len(terms)} cases of {inputs} inputs each, more than are read; split it into several files")
    base = _Bounds(inputs)
    base.narrow(common)
    always = tuple(one for one in common if isinstance(one, Constraint))
    found: dict[InputBox, dict[Conjunction, None]] = {}
    for term in terms:
        bounds = base.copy()
        bounds.narrow(term)
        for i, (low, high) in enumerate(zip(bounds.lower, bounds.upper, strict=True)):
            if low is None or high is None:
                side = "lower" if low is None else "upper"
                text.refuse(offsets["X", i], f"input X_{i} has no {side} bound; every input needs both")
        box = InputBox(tuple(bounds.lower), tuple(bounds.upper))  # type: ignore[arg-type]  # none is None, as just checked
        if all(low <= high for low, high in zip(box.lower, box.upper, strict=True)):
            unsafe = (*always, *(one for one in term if isinstance(one, Constraint)))
            found.setdefault(box, {})[tuple(dict.fromkeys(unsafe))] = None
    return Query(inputs, outputs, tuple(Case(box, tuple(unsafe)) for box, unsafe in found.items()))


class _Bounds:
    """The box so far; None where nothing bounds an input."""

    def __init__(self, inputs: int) -> None:
        self.lower: list[Fraction | None] = [None] * inputs
        self.upper: list[Fraction | None] = [None] * inputs

    def copy(self) -> _Bounds:
        copied = _Bounds(0)
        copied.lower, copied.upper = self.lower.copy(), self.upper.copy()
        return copied

    def narrow(self, term: Term) -> None:
        for one in term:
            if isinstance(one, InputBound):
                ends = self.upper if one.upper else self.lower
                known = ends[one.input]
                if known is None or (one.value < known if one.upper else one.value > known):
                    ends[one.input] = one.value


def _expand(text: Text, offset: int, formula: Any) -> list[Term]:
    """Returns the terms of which one must hold; a formula is an atomic statement or ("and" | "or", parts)."""
    if isinstance(formula, InputBound | Constraint):
        return [[formula]]
    operator, parts = formula
    expanded = [_expand(text, offset, part) for part in parts]
    if operator == "or":
        return _limited(text, offset, [term for terms in expanded for term in terms])
    together: Term = [one for terms in expanded if len(terms) == 1 for one in terms[0]]
    result: list[Term] = [together]
    for terms in expanded:
        if len(terms) != 1:
            result = _product(text, offset, result, terms)
    return result


def _product(text: Text, offset: int, a: list[Term], b: list[Term]) -> list[Term]:
    statements = len(b) * sum(map(len, a)) + len(a) * sum(map(len, b))
    if len(a) * len(b) > MAX_TERMS or statements > MAX_STATEMENTS:
        _too_many(text, offset)
    return [one + other for one in a for other in b]


def _limited(text: Text, offset: int, terms: list[Term]) -> list[Term]:
    if len(terms) > MAX_TERMS or sum(map(len, terms)) > MAX_STATEMENTS:
        _too_many(text, offset)
    return terms


def _too_many(text: Text, offset: int) -> None:
    text.refuse(
        offset, f"the property has more than {MAX_TERMS} cases or {MAX_STATEMENTS} statements once written out; split it into several files"
    )
