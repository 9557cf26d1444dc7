"""Writes a query as VNN-LIB 1.0, each number exactly where its decimal form is finite, and else outward."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from vsparse.files import write_bytes
from vsparse.vnnlib.query import Case, Constraint, Query

# Decimal places of a number without a finite decimal form, or with one that is longer than this many places.
PLACES = 60
MAX_PLACES = 400


def write_vnnlib(path: Path, query: Query, comments: Iterable[str] = ()) -> None:
    """Writes the query atomically, with a comment line for each of `comments`; `read_vnnlib` gives it back.

    A number like 1/3 has no finite decimal form: the box is then written a little larger (by less than 1e-60), and so are the unsafe
    outputs, so that whoever proves the file proves the query.
    """
    write_bytes(path, vnnlib_text(query, comments).encode())


def vnnlib_text(query: Query, comments: Iterable[str] = ()) -> str:
    """Returns the text that `write_vnnlib` writes."""
    lines = [f"; {line}" for comment in comments for line in comment.splitlines() or [""]]
    lines += [f"(declare-const X_{i} Real)" for i in range(query.inputs)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(query.outputs)]
    if len(query.cases) == 1:
        case = query.cases[0]
        lines += [f"(assert {statement})" for statement in _box(case)]
        # One conjunction needs no `or`.
        if len(case.unsafe) == 1:
            lines += [f"(assert {_constraint(constraint)})" for constraint in case.unsafe[0]]
        else:
            lines.append(_disjunction(_conjunction([_constraint(one) for one in unsafe]) for unsafe in case.unsafe))
    else:
        lines.append(_disjunction(_conjunction([*_box(case), *map(_constraint, unsafe)]) for case in query.cases for unsafe in case.unsafe))
    return "\n".join(lines) + "\n"


def decimal(value: Fraction) -> str:
    """Returns a number exactly as a decimal, or to `PLACES` places where its decimal form does not end."""
    return _down(value)


def _box(case: Case) -> list[str]:
    statements = []
    for i, (low, high) in enumerate(zip(case.box.lower, case.box.upper, strict=True)):
        statements += [f"(>= X_{i} {_down(low)})", f"(<= X_{i} {_up(high)})"]
    return statements


def _disjunction(parts: Iterable[str]) -> str:
    inside = "".join(f"\n  {part}" for part in parts)
    # `or` of nothing is false; VNN-LIB has no word for it.
    return f"(assert (or{inside}\n))" if inside else "(assert (<= 1 0))"


def _conjunction(statements: list[str]) -> str:
    return f"(and {' '.join(statements)})" if statements else "(<= 0 1)"


def _constraint(constraint: Constraint) -> str:
    """Writes Σ c·Y <= bound: Y_a <= Y_b where it is a comparison of two outputs, as all tools read that."""
    terms = dict(constraint.coefficients)
    if constraint.bound == 0 and sorted(terms.values()) == [-1, 1]:
        small, large = (next(j for j, c in terms.items() if c == sign) for sign in (1, -1))
        return f"(<= Y_{small} Y_{large})"
    scale = 1  # multiplies both sides, so that every coefficient has a finite decimal form
    for value in terms.values():
        scale = scale if _finite(value * scale) else scale * value.denominator
    bound = _up(constraint.bound * scale)
    if len(terms) == 1:
        ((j, c),) = terms.items()
        if abs(c) == 1:
            return f"(<= Y_{j} {bound})" if c > 0 else f"(>= Y_{j} {_down(-constraint.bound)})"
    written = [f"Y_{j}" if c * scale == 1 else f"(* {_up(c * scale)} Y_{j})" for j, c in terms.items()]
    return f"(<= {written[0] if len(written) == 1 else '(+ ' + ' '.join(written) + ')'} {bound})"


def _finite(value: Fraction) -> bool:
    """Whether the decimal form is finite and not too long."""
    return pow(10, MAX_PLACES, value.denominator) == 0


def _up(value: Fraction) -> str:
    return _decimal(-(-value * 10**PLACES // 1), PLACES) if not _finite(value) else _exact(value)


def _down(value: Fraction) -> str:
    return _decimal(value * 10**PLACES // 1, PLACES) if not _finite(value) else _exact(value)


def _exact(value: Fraction) -> str:
    return _decimal(int(value * 10**MAX_PLACES), MAX_PLACES)


def _decimal(scaled: int, places: int) -> str:
    """Returns scaled / 10^places as text, without zeros at the end."""
    whole, part = divmod(abs(scaled), 10**places)
    digits = f"{part:0{places}d}".rstrip("0")
    return f"{'-' if scaled < 0 else ''}{whole}.{digits or '0'}"
