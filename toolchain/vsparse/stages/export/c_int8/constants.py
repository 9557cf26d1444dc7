"""The constant tables of the int8 C: integers as written, scales in float32, and the bytes that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.stages.export.c_source.weights import Table

_BYTES = {"int8_t": 1, "uint8_t": 1, "uint16_t": 2, "int32_t": 4, "uint32_t": 4}


class Int8Tables:
    """What has been added so far."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self.bytes = 0

    def integers(self, kind: str, name: str, values: NDArray[Any]) -> None:
        """Adds a table of a C type; those of bytes begin where words do. C has no empty arrays, so that an empty one holds a zero."""
        flat = np.asarray(values).reshape(-1)
        flat = flat if flat.size else np.zeros(1, np.int64)
        self.bytes += _BYTES[kind] * flat.size
        self.tables.append(Table(kind, name, flat, aligned="VS_WORDS" if kind == "int8_t" else ""))

    def floats(self, name: str, values: NDArray[np.float32]) -> None:
        """Adds a table of float32 numbers."""
        self.bytes += 4 * values.size
        self.tables.append(Table("float", name, values))
