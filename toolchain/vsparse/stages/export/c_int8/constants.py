"""The constant tables of the int8 C: integers as written, scales in float32; their text, and the bytes that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.stages.export.c_source.literals import float_literals, table

_BYTES = {"int8_t": 1, "uint8_t": 1, "uint16_t": 2, "int32_t": 4, "uint32_t": 4}


class Int8Tables:
    """What has been added so far."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.bytes = 0

    def integers(self, kind: str, name: str, values: NDArray[Any]) -> None:
        """Adds a table of a C type; those of bytes begin where words do. C has no empty arrays, so that an empty one holds a zero."""
        flat = np.asarray(values).reshape(-1)
        flat = flat if flat.size else np.zeros(1, np.int64)
        self.bytes += _BYTES[kind] * flat.size
        self._texts.append(table(kind, f"{name}[{flat.size}]{' VS_WORDS' if kind == 'int8_t' else ''}", [str(int(v)) for v in flat]))

    def floats(self, name: str, values: NDArray[np.float32]) -> None:
        """Adds a table of float32 numbers."""
        self.bytes += 4 * values.size
        self._texts.append(table("float", f"{name}[{values.size}]", float_literals(values)))

    def text(self) -> str:
        """Returns the definitions."""
        return "\n".join(self._texts)
