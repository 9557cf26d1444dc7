"""Notations of the constant tables: decimals in a header (C99), or a binary file that an assembly file makes symbols of (ELF).

The binary one holds the tables one after the other, little-endian and without gaps; model_weights.S gives each a read-only section, a
hidden symbol that begins with the network's prefix, and its alignment, and model_weights.h declares the arrays to model.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.models import C_COLUMNS
from vsparse.stages.export.c_source.literals import comment, float_literals, table

# Who reads a table: both texts of a network, the one with vectors, or the one without.
Reader = Literal["both", "vector", "scalar"]
Notation = Literal["text", "binary", "auto"]
# `auto` writes up to so many numbers as text: some 3 MB, which compile in about a second.
TEXT_NUMBERS = 2**18
# Where GNU C's vector types are instructions. (32-bit Arm: gcc makes scalar instructions of them, as NEON flushes subnormals.)
VECTORS = "defined(__GNUC__) && (defined(__SSE__) || defined(__aarch64__) || defined(__VSX__) || defined(__wasm_simd128__))"
# What vectors may read beyond the end of a table (VS_SLACK), in bytes.
_SLACK_BYTES = 60
TYPES = {"float": "<f4", "int8_t": "i1", "uint8_t": "u1", "int16_t": "<i2", "uint16_t": "<u2", "int32_t": "<i4", "uint32_t": "<u4"}
_CONDITIONS = {"both": "", "vector": "VS_LANES > 1", "scalar": "VS_LANES == 1"}
_ASSEMBLED = {"both": "", "vector": "VS_WITH_VECTORS", "scalar": "!VS_WITH_VECTORS"}


@dataclass(frozen=True)
class Table:
    """A constant array: its numbers in row-major order, who reads it, the macro that aligns it, and whether vectors read beyond its end.

    `kind` is the C type of its elements; `declared` is what it is declared as where that is another name of the type.
    """

    kind: str
    name: str
    values: NDArray[np.generic]
    reader: Reader = "both"
    aligned: str = ""
    slack: bool = False
    declared: str = ""

    @property
    def declarator(self) -> str:
        """The name with its size and alignment."""
        return f"{self.name}[{self.values.size}{' + VS_SLACK' if self.slack else ''}]{f' {self.aligned}' if self.aligned else ''}"

    def text(self) -> str:
        """Returns its definition in C99."""
        flat = self.values.reshape(-1)
        items = float_literals(flat.astype(np.float32)) if self.kind == "float" else [str(int(value)) for value in flat.tolist()]
        return table(self.declared or self.kind, self.declarator, items)

    def data(self) -> bytes:
        """Returns its numbers in little-endian order."""
        return np.ascontiguousarray(self.values).reshape(-1).astype(TYPES[self.kind]).tobytes()


def is_binary(notation: Notation, tables: Sequence[Table]) -> bool:
    """Returns whether tables are written in the binary notation."""
    return notation == "binary" or (notation == "auto" and sum(one.values.size for one in tables) > TEXT_NUMBERS)


@dataclass(frozen=True)
class WeightFiles:
    """The header with the weights, and by their names the two files of the binary notation, where that is used."""

    header: str
    binary: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def assembly(self) -> str:
        """The name of the file that is compiled beside the source; empty where there is none."""
        return next((name for name in self.binary if name.endswith(".S")), "")


def weight_files(names: Sequence[str], tables: Sequence[Table], notation: Notation, title: str, prefix: str) -> WeightFiles:
    """Returns the files that hold the tables; `names` are those of the source, of its header and of the header with the weights."""
    source, _, header = names
    if not is_binary(notation, tables):
        definitions = _grouped(tables, _CONDITIONS, [one.text() for one in tables])
        return WeightFiles(f"/* The weights of {comment(title)}, for {source} alone to include. */\n{definitions}\n")
    stem = header.removesuffix(".h")
    declarations, parts, data, offset = [], [], [], 0
    for one in tables:
        symbol, blob = f"{prefix}_{one.name}", one.data()
        declarations.append(
            f'#define {one.name} {symbol}\nextern const {one.declared or one.kind} {one.declarator} __attribute__((visibility("hidden")));'
        )
        parts.append(_section(one, symbol, offset, len(blob)))
        data.append(blob)
        offset += len(blob)
    first = f"/* The weights of {comment(title)}, for {source} alone to include: {stem}.S makes symbols of {stem}.bin. */"
    order = [
        "#if !defined(__ELF__) || !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__",
        f'#error "{stem}.bin is for little-endian ELF; build with export.c_weights = \\"text\\" for this target"',
        "#endif",
    ]
    text = "\n".join([first, *order, _grouped(tables, _CONDITIONS, declarations), ""])
    binary: dict[str, str | bytes] = {
        f"{stem}.S": "\n".join([_introduction(title, stem), *order, _SETUP, _grouped(tables, _ASSEMBLED, parts), _END, ""]),
        f"{stem}.bin": b"".join(data),
    }
    return WeightFiles(text, binary)


def units(source: Path) -> list[Path]:
    """Returns the files that are compiled for a network: `source` and, where there is one, the assembly file of its weights."""
    assembly = source.with_name(f"{source.stem}_weights.S")
    return [source, assembly] if assembly.exists() else [source]


def beside(source: Path) -> list[Path]:
    """Returns the files of a network in C that are there: `source`, what it includes, its weights in the binary notation, its columns."""
    stem = source.stem
    names = (f"{stem}.h", f"{stem}_weights.h")
    more = [source.with_name(f"{stem}_weights{end}") for end in (".S", ".bin")]
    more.append(source.with_name(C_COLUMNS))
    return [source, *(source.with_name(name) for name in names), *(path for path in more if path.exists())]


def _grouped(tables: Sequence[Table], conditions: dict[str, str], parts: Sequence[str]) -> str:
    """Returns the parts, one a table, those that only one of the texts reads behind conditions."""
    groups = []
    for reader, condition in conditions.items():
        own = "\n".join(part for one, part in zip(tables, parts, strict=True) if one.reader == reader)
        if own:
            groups.append(f"#if {condition}\n{own}\n#endif" if condition else own)
    return "\n".join(groups)


def _section(one: Table, symbol: str, offset: int, size: int) -> str:
    aligned = "VS_ALIGNMENT" if one.aligned == "VS_ALIGNED" else "4"
    more = "\n    .zero VS_BEYOND" if one.slack else ""
    return (
        f'    .section .rodata.{symbol}, "a", %progbits\n    .balign {aligned}\n    .globl {symbol}\n    .hidden {symbol}\n'
        f"    .type {symbol}, %object\n    .size {symbol}, {size}{' + VS_BEYOND' if one.slack else ''}\n{symbol}:\n"
        f'    .incbin VS_WEIGHTS_FILE, {offset}, {size}\n    .if . - {symbol} - {size}\n    .error "the file of weights is too short"\n'
        f"    .endif{more}"
    )


def _introduction(title: str, stem: str) -> str:
    return (
        f"/* The weights of {comment(title)}: symbols for {stem}.bin. Compile it with the options of the C file, in this folder, with -I\n"
        f"   and this folder, or with -DVS_WEIGHTS_FILE='\"path of {stem}.bin\"'. */\n"
        f'#ifndef VS_WEIGHTS_FILE\n#define VS_WEIGHTS_FILE "{stem}.bin"\n#endif'
    )


_SETUP = f"""#if {VECTORS}
#define VS_WITH_VECTORS 1
#define VS_ALIGNMENT 64
#define VS_BEYOND {_SLACK_BYTES}
#else
#define VS_WITH_VECTORS 0
#define VS_ALIGNMENT 4
#define VS_BEYOND 0
#endif"""
_END = '    .section .note.GNU-stack, "", %progbits'
