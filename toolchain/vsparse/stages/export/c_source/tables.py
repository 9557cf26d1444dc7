"""The constant tables of a network in C: what they hold, and the bytes that they take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vsparse.stages.export.c_source.weights import TYPES, Reader, Table

# Formats of indexes and differences of positions, the narrowest first: C type, bytes, least and largest value.
_FORMATS = (
    ("uint8_t", 1, 0, 2**8 - 1),
    ("uint16_t", 2, 0, 2**16 - 1),
    ("int16_t", 2, -(2**15), 2**15 - 1),
    ("uint32_t", 4, 0, 2**32 - 1),
    ("int32_t", 4, -(2**31), 2**31 - 1),
)


def narrowest(values: NDArray[np.int64]) -> tuple[str, int]:
    """Returns the C type of the narrowest integers that hold all values, and its bytes."""
    least, most = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return next((kind, size) for kind, size, low, high in _FORMATS if low <= least and most <= high)


@dataclass
class Tables:
    """What has been added so far."""

    _tables: list[Table] = field(default_factory=list)
    _bytes: dict[Reader, int] = field(default_factory=lambda: {"both": 0, "vector": 0, "scalar": 0})
    _indexes: dict[Reader, int] = field(default_factory=lambda: {"both": 0, "vector": 0, "scalar": 0})
    _largest: int = 0
    _added: dict[str, bytes] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def table_of(self, node: str) -> str:
        """Returns the prefix of the tables of one operator; names of the graph never become identifiers."""
        return self._names.setdefault(node, f"n{len(self._names) + 1}")

    def floats(self, name: str, values: NDArray[np.float32], reader: Reader = "both", *, slack: bool = False) -> None:
        """Adds a table of float32 values; with `slack`, vectors may read a few elements beyond its end.

        C has no empty arrays, so that an empty one holds a zero that nothing reads.
        """
        values = values if values.size else np.zeros(1, np.float32)
        if self._again(name, values):
            return
        self._bytes[reader] += 4 * values.size
        self._tables.append(Table("float", name, values, reader, "VS_ALIGNED", slack))

    def indexes(self, name: str, values: NDArray[np.int64], reader: Reader = "both") -> None:
        """Adds a table of indexes in the narrowest format that holds all of the model's (`vs_index`)."""
        values = values if values.size else np.zeros(1, np.int64)
        if self._again(name, values):
            return
        self._largest = max(self._largest, int(values.max()))
        self._indexes[reader] += values.size
        self._tables.append(Table("", name, values, reader, declared="vs_index"))

    def integers(self, name: str, values: NDArray[np.int64], reader: Reader = "both", kind: str = "") -> str:
        """Adds a table of integers in the narrowest format that holds this table, or in `kind`; returns the format."""
        values = values if values.size else np.zeros(1, np.int64)
        found, size = narrowest(values)
        if kind:
            found, size = kind, 4
        if self._again(name, values):
            return found
        self._bytes[reader] += size * values.size
        self._tables.append(Table(found, name, values, reader))
        return found

    def share(self, *names: str) -> None:
        """Lets both texts read tables that one of them has; names that there are not are left out."""
        for i, one in enumerate(self._tables):
            if one.name in names and one.reader != "both":
                size = 1 if one.declared else np.dtype(TYPES[one.kind]).itemsize
                of = self._indexes if one.declared else self._bytes
                of[one.reader] -= size * one.values.size
                of["both"] += size * one.values.size
                self._tables[i] = replace(one, reader="both")

    def _again(self, name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> bool:
        """Returns whether a table was added before: inference and the live certificate read the same ones."""
        content = values.tobytes()
        if name not in self._added:
            self._added[name] = content
            return False
        assert self._added[name] == content, name
        return True

    @property
    def index_type(self) -> str:
        """The C type of `vs_index`."""
        return "uint16_t" if self._largest < 2**16 else "uint32_t"

    def bytes_of(self, reader: Literal["vector", "scalar"]) -> int:
        """Returns the bytes of all tables that a text has."""
        width = 2 if self.index_type == "uint16_t" else 4
        return sum(self._bytes[one] + width * self._indexes[one] for one in ("both", reader))

    def tables(self) -> list[Table]:
        """Returns all tables, those of both texts first."""
        made = [replace(one, kind=self.index_type) if one.declared else one for one in self._tables]
        return [one for reader in get_args(Reader) for one in made if one.reader == reader]
