"""C text for numbers and names: floats in hexadecimal, so that every bit survives any compiler, and comments that nothing can end early."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

WIDTH = 132
SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:,-+ ()[]")


def float_literal(value: float) -> str:
    """Returns a finite float32 as a C99 hexadecimal constant, exact."""
    if value == 0:
        return "-0.0f" if np.signbit(value) else "0.0f"
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}f" if "." in mantissa else f"{mantissa}p{exponent}f"


def float_table(name: str, values: NDArray[np.float32]) -> str:
    """Returns the definition of a constant array, flat."""
    return _table(f"static const float {name}[{values.size}] VS_ALIGNED", (float_literal(v) for v in values.reshape(-1).tolist()))


def index_table(name: str, values: NDArray[np.int64], kind: str = "vs_index") -> str:
    """Returns the definition of a constant array of indexes."""
    return _table(f"static const {kind} {name}[{values.size}]", (str(v) for v in values.reshape(-1).tolist()))


def comment(text: str) -> str:
    """Returns text that is safe inside a C comment or string: names come from files that anyone may have written."""
    return "".join(c if c in SAFE else "_" for c in text)[:80]


def _table(head: str, items: Iterable[str]) -> str:
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {item},"
    lines.append(line)
    return "\n".join([f"{head} = {{", *lines, "};"])
