"""The C text as it grows: constant tables, statements, the kernels they call, and the scratch arrays they need."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vsparse.stages.export.c_source.literals import float_table, index_table


@dataclass
class Program:
    """What has been emitted so far."""

    statements: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    scratches: dict[str, int] = field(default_factory=dict)
    bytes_of_tables: int = 0
    _tables: list[str | tuple[str, NDArray[np.int64]]] = field(default_factory=list)
    _largest: int = 0
    _names: int = 0

    def next_name(self) -> str:
        """Returns a prefix for the tables of one operator; names of the graph never become identifiers."""
        self._names += 1
        return f"n{self._names}"

    def do(self, *statements: str) -> None:
        """Adds statements to the body of the function."""
        self.statements += [f"    {line}" for line in statements]

    def use(self, *kernels: str) -> None:
        """Adds kernels to the file, once each."""
        self.kernels += [name for name in kernels if name not in self.kernels]

    def scratch(self, name: str, floats: int) -> None:
        """Asks for a scratch array of at least that many floats."""
        self.scratches[name] = max(self.scratches.get(name, 0), floats)

    def floats(self, name: str, values: NDArray[np.float32]) -> None:
        """Adds a table of float32 values; C has no empty arrays, so that an empty one holds a zero that nothing reads."""
        values = values if values.size else np.zeros(1, np.float32)
        self.bytes_of_tables += 4 * values.size
        self._tables.append(float_table(name, values))

    def indexes(self, name: str, values: NDArray[np.int64], kind: str = "vs_index") -> None:
        """Adds a table of indexes, in the narrowest format that holds all of the model's (`vs_index`), or in `kind`."""
        values = values if values.size else np.zeros(1, np.int64)
        if kind != "vs_index":
            self.bytes_of_tables += 4 * values.size
            self._tables.append(index_table(name, values, kind))
            return
        self._largest = max(self._largest, int(values.max()))
        self._tables.append((name, values))

    @property
    def index_type(self) -> str:
        """The C type of `vs_index`."""
        return "uint16_t" if self._largest < 2**16 else "uint32_t"

    def tables(self) -> list[str]:
        """Returns the definitions of all tables."""
        return [table if isinstance(table, str) else index_table(*table) for table in self._tables]
