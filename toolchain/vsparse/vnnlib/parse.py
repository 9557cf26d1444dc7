"""VNN-LIB 1.0 to normal form: declarations of X_i and Y_i, and assertions of linear bounds under `and` and `or`.

The standard is "VNN-LIB: The Verification of Neural Networks Library" (Guidotti, Demarchi, Tacchella and Pulina, vnnlib.org), in the
subset of the International Verification of Neural Networks Competition: the assertions together describe the unsafe executions.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from vsparse.vnnlib.normal_form import Atomic, InputBound, normal_form
from vsparse.vnnlib.query import Constraint, Query
from vsparse.vnnlib.tokens import Atom, Text, TokenList, read_text, shown

MAX_VARIABLES = 1_000_000
# Beyond these a number means nothing to a network in float32, and its exact value costs memory without bound.
MAX_EXPONENT = 300
MAX_BITS = 20_000

_SYMBOL = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})")
_NUMBER = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,6}))?|([+-]?)\.([0-9]+)(?:[eE]([+-]?[0-9]{1,6}))?")

# A linear expression: coefficients of ("X", i) and ("Y", j), and a constant.
LinearExpression = tuple[dict[tuple[str, int], Fraction], Fraction]
# A formula: one atomic statement, or ("and" | "or", parts); True is `("and", [])` and False `("or", [])`.
Formula = Atomic | tuple[str, list["Formula"]]


def read_vnnlib(path: Path) -> Query:
    """Reads a VNN-LIB file, gzipped or not, into normal form.

    Raises InputError, in one sentence with the file and the line, for what is damaged, too large or too deeply nested, and for what is
    outside the subset: other symbols than X_i and Y_j, statements that mix inputs and outputs or relate several inputs, products of
    variables, an input without a lower or an upper bound. Time and memory are bounded whatever the file says.
    """
    return parse(read_text(path))


def parse(text: Text) -> Query:
    """Returns the normal form of a text; errors as for `read_vnnlib`."""
    reader = _Reader(text)
    formulas: list[tuple[Formula, int]] = []
    for command in text.commands():
        head = command[0] if command else None
        if head == "declare-const":
            reader.declare(command)
        elif head == "assert":
            if len(command) != 2:
                text.refuse(command.offset, f"assert takes one formula and has {len(command) - 1}")
            formulas.append((reader.formula(command[1]), command.offset))
        else:
            what = f'"{shown(head)}"' if isinstance(head, Atom) else "a list without a command"
            text.refuse(command.offset, f"{what} is not known; VNN-LIB 1.0 has (declare-const …) and (assert …)")
    inputs, outputs = (reader.count(kind) for kind in "XY")
    return normal_form(text, inputs, outputs, formulas, reader.offsets)


class _Reader:
    """Turns lists of tokens into declarations and formulas."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.offsets: dict[tuple[str, int], int] = {}
        self._numbers: dict[str, Fraction] = {}

    def declare(self, command: TokenList) -> None:
        """Reads (declare-const X_0 Real)."""
        symbol = command[1] if len(command) > 1 else None
        if len(command) != 3 or not isinstance(symbol, Atom) or command[2] != "Real":
            self.text.refuse(command.offset, "a declaration is written (declare-const X_0 Real), with X_i for inputs and Y_j for outputs")
        match = _SYMBOL.fullmatch(symbol)
        if match is None:
            self.text.refuse(symbol.offset, f'"{shown(symbol)}" is neither an input X_i nor an output Y_j')
        key = (match[1], int(match[2]))
        if key in self.offsets:
            self.text.refuse(symbol.offset, f"{symbol} is declared twice")
        if len(self.offsets) == MAX_VARIABLES:
            self.text.refuse(symbol.offset, f"more than {MAX_VARIABLES} variables are declared")
        self.offsets[key] = symbol.offset

    def count(self, kind: str) -> int:
        """Returns how many inputs or outputs there are; they must be numbered from 0 without a gap."""
        numbers = {i for name, i in self.offsets if name == kind}
        missing = next((i for i in range(len(numbers)) if i not in numbers), None)
        if missing is not None:
            last = max(numbers)
            self.text.refuse(
                self.offsets[kind, last], f"{kind}_{last} is declared and {kind}_{missing} is not; number them from 0 without a gap"
            )
        if not numbers:
            what = "input X_0" if kind == "X" else "output Y_0"
            self.text.refuse(0, f"no {what} is declared; a property is about the inputs and outputs of a network")
        return len(numbers)

    def formula(self, item: Atom | TokenList) -> Formula:
        """Reads a formula; the depth of lists is bounded, and with it the depth of this recursion."""
        if isinstance(item, Atom) or not item or not isinstance(item[0], Atom):
            what = f'"{shown(item)}" stands' if isinstance(item, Atom) else "a list without an operator stands"
            self.text.refuse(item.offset, f"{what} where a formula is expected: (<= a b), (>= a b), (and …) or (or …)")
        operator = item[0]
        if operator in ("and", "or"):
            if len(item) == 1:
                self.text.refuse(item.offset, f"({operator}) has no arguments")
            return str(operator), [self.formula(part) for part in item[1:]]
        if operator not in ("<=", ">="):
            self.text.refuse(operator.offset, f'the operator "{shown(operator)}" is not known here; VNN-LIB 1.0 has <=, >=, and, or')
        if len(item) != 3:
            self.text.refuse(item.offset, f"{operator} takes two arguments and has {len(item) - 1}")
        bound = self._input_bound(operator, item[1], item[2])
        if bound is not None:
            return bound
        left, right = self.expression(item[1]), self.expression(item[2])
        return self._atomic(item.offset, left, right) if operator == "<=" else self._atomic(item.offset, right, left)

    def _input_bound(self, operator: Atom, left: Atom | TokenList, right: Atom | TokenList) -> InputBound | None:
        """Returns X_i <= number or X_i >= number by a short cut: a property of an image has thousands of these."""
        if isinstance(left, Atom) and isinstance(right, Atom) and left[0] == "X" and right[0] not in "XY":
            match = _SYMBOL.fullmatch(left)
            if match is not None and ("X", int(match[2])) in self.offsets:
                return InputBound(int(match[2]), operator == "<=", self._number(right))
        return None

    def expression(self, item: Atom | TokenList) -> LinearExpression:
        """Reads a linear expression: a number, a variable, or +, -, * of such."""
        if isinstance(item, Atom):
            match = _SYMBOL.fullmatch(item)
            if match is None:
                return {}, self._number(item)
            key = (match[1], int(match[2]))
            if key not in self.offsets:
                self.text.refuse(item.offset, f"{item} is not declared")
            return {key: Fraction(1)}, Fraction(0)
        operator = item[0] if item else None
        if operator not in ("+", "-", "*") or len(item) < 2:
            what = f'"{shown(operator)}"' if isinstance(operator, Atom) else "a list"
            self.text.refuse(item.offset, f"{what} stands where a linear expression is expected: a number, a variable, or +, -, * of such")
        parts = [self.expression(part) for part in item[1:]]
        result = parts[0]
        if operator == "-" and len(parts) == 1:
            return _scaled(result, Fraction(-1))
        for part in parts[1:]:
            if operator == "*":
                if part[0] and result[0]:
                    self.text.refuse(item.offset, "two variables are multiplied; only linear expressions can be verified")
                result = _scaled(result, part[1]) if not part[0] else _scaled(part, result[1])
            else:
                result = _sum(result, part if operator == "+" else _scaled(part, Fraction(-1)))
            self._bounded(item.offset, result)
        return result

    def _bounded(self, offset: int, value: LinearExpression) -> None:
        if any(max(abs(number.numerator), number.denominator).bit_length() > MAX_BITS for number in (*value[0].values(), value[1])):
            self.text.refuse(offset, "the numbers of this expression have too many digits; write it with shorter ones")

    def _number(self, token: Atom) -> Fraction:
        known = self._numbers.get(token)
        if known is not None:
            return known
        match = _NUMBER.fullmatch(token)
        if match is None:
            self.text.refuse(token.offset, f'"{shown(token)}" is neither a number nor a variable')
        sign, whole, part, exponent = match.group(1, 2, 3, 4) if match[2] is not None else (match[5], "", match[6], match[7])
        digits, scale = whole + (part or ""), int(exponent or 0) - len(part or "")
        if abs(int(exponent or 0)) > MAX_EXPONENT or len(whole.lstrip("0")) > MAX_EXPONENT:
            self.text.refuse(
                token.offset, f"{shown(token)} is too large or too small for any network; at most {MAX_EXPONENT} digits are read"
            )
        value = int(sign + digits)
        number = Fraction(value * 10**scale) if scale >= 0 else Fraction(value, 10**-scale)
        if len(self._numbers) < MAX_VARIABLES:
            self._numbers[token] = number
        return number

    def _atomic(self, offset: int, left: LinearExpression, right: LinearExpression) -> Formula:
        """Returns left <= right as a bound of one input or a constraint on the outputs."""
        coefficients, constant = _sum(left, _scaled(right, Fraction(-1)))
        names = sorted(key for key, value in coefficients.items() if value)
        bound = -constant
        if not names:
            return ("and" if bound >= 0 else "or"), []
        kinds = {kind for kind, _ in names}
        if kinds == {"Y"}:
            return Constraint(tuple((j, coefficients["Y", j]) for _, j in names), bound)
        if kinds == {"X", "Y"}:
            self.text.refuse(
                offset, "a statement relates inputs to outputs; only bounds of inputs and constraints on outputs can be verified"
            )
        if len(names) > 1:
            self.text.refuse(offset, f"a statement relates X_{names[0][1]} to other inputs; only boxes of inputs can be verified")
        slope = coefficients[names[0]]
        return InputBound(names[0][1], slope > 0, bound / slope)


def _scaled(value: LinearExpression, factor: Fraction) -> LinearExpression:
    return {key: c * factor for key, c in value[0].items()}, value[1] * factor


def _sum(a: LinearExpression, b: LinearExpression) -> LinearExpression:
    coefficients = dict(a[0])
    for key, value in b[0].items():
        coefficients[key] = coefficients.get(key, Fraction(0)) + value
    return coefficients, a[1] + b[1]
