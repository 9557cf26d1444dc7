"""C text for numbers and names: floats in the shortest decimal that is exact, and comments that nothing can end early."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH = 132
SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:,-+ ()[]")


def float_literals(values: NDArray[np.float32]) -> list[str]:
    """Returns finite float32 numbers as C99 constants of type float, each exact.

    The shortest decimal that only this float32 is nearest to; hexadecimal where a compiler that rounds by way of double would miss it.
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    texts = [_trimmed(text) for text in flat.astype("U").tolist()]
    twice = np.array([float(text) for text in texts], np.float64).astype(np.float32)
    for i in np.flatnonzero(twice.view(np.uint32) != flat.view(np.uint32)).tolist():
        texts[i] = _hexadecimal(float(flat[i]))
    return [f"{text}f" for text in texts]


def float_literal(value: float) -> str:
    """Returns one finite float32 as a C99 constant, exact."""
    return float_literals(np.array([value], np.float32))[0]


def table(kind: str, declarator: str, items: Sequence[str]) -> str:
    """Returns the definition of a constant array, `declarator` with its size."""
    lines, line = [], ""
    for item in items:
        if len(line) + len(item) + 1 > WIDTH:
            lines.append(line)
            line = ""
        line += f"{item},"
    lines.append(line.rstrip(","))
    return "\n".join([f"static const {kind} {declarator} = {{", *lines, "};"])


def comment(text: str) -> str:
    """Returns text that is safe inside a C comment or string: names come from files that anyone may have written."""
    return "".join(c if c in SAFE else "_" for c in text)[:80]


def _trimmed(text: str) -> str:
    """Returns numpy's shortest text of a float without what C does not need: a zero before or after the point, zeros of exponents."""
    mantissa, e, exponent = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0")
    if not e:
        sign, digits = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
        return sign + (digits.removeprefix("0") if digits != "0." else "0.") + ("" if "." in digits else ".")
    return f"{mantissa.removesuffix('.')}e{int(exponent)}"


def _hexadecimal(value: float) -> str:
    if value == 0:
        return "-0." if np.signbit(value) else "0."
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}" if "." in mantissa else f"{mantissa}p{exponent}"
