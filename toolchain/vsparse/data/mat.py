"""MATLAB's MAT-files of level 5, as far as SVHN's go: variables that are plain arrays of numbers, compressed or not.

The format is that of "MAT-File Format" (The MathWorks), level 5: a header of 128 bytes, then elements of a type, a size and data, padded to
8 bytes. Structures, cells, objects and complex numbers are refused by name; what a header claims is compared with what is there before
memory is taken.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import MAX_DEFLATE_RATIO, read_exactly, reading
from vsparse.data.dataset import MAX_PIXEL_BYTES
from vsparse.errors import InputError

HEADER = 128
# Element types: those of numbers with their dtype, a variable, and a compressed variable.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
# Classes of variables that are arrays of numbers, with the dtype that they stand for.
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
OTHERS = {1: "a cell array", 2: "a structure", 3: "an object", 4: "text", 5: "a sparse array", 16: "a function", 17: "an opaque object"}
COMPLEX = 0x0800
MAX_AXES = 8
MAX_NAME = 64
MAX_VARIABLES = 64


class _Inflated:
    """A stream of what a zlib stream of `size` bytes holds, made as it is read."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._left, self._zlib = stream, size, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """Returns at most `count` bytes, and none at the end."""
        while True:
            if self._zlib.unconsumed_tail:
                found = self._zlib.decompress(self._zlib.unconsumed_tail, count)
            elif self._left and not self._zlib.eof:
                piece = self._stream.read(min(self._left, 2**16))
                if not piece:
                    return b""
                self._left -= len(piece)
                found = self._zlib.decompress(piece, count)
            else:
                return b""
            if found:
                return found

    def whole(self) -> bool:
        """Whether the stream ends within the padding that may follow, with the checksum that it says."""
        return len(self.read(8)) < 8 and self._zlib.eof


@dataclass
class _Elements:
    """Elements one after the other, of which at most `left` bytes may be read."""

    stream: Any
    order: str
    source: str
    left: int

    def take(self, count: int, what: str) -> bytes:
        self._claim(count, what)
        return read_exactly(self.stream, count, self.source, what).tobytes()

    def _claim(self, count: int, what: str) -> None:
        if count > self.left:
            raise InputError(f"{self.source}: {what} claims {count} bytes, more than its variable has; the file is damaged: copy it again")
        self.left -= count

    def array(self, what: str, most: int) -> tuple[int, NDArray[Any]]:
        """Returns the type of the next element and its data, at most `most` bytes, as an array of its dtype."""
        first, size = struct.unpack(f"{self.order}II", self.take(8, f"the tag of {what}"))
        kind, small = first & 0xFFFF, first >> 16
        if small:  # up to four bytes, in the second half of the tag
            if small > 4:
                raise InputError(f"{self.source}: {what} has a small element of {small} bytes, and 4 are the most; copy the file again")
            data = struct.pack(f"{self.order}I", size)[:small]
        else:
            kind = first
            if size > most:
                raise InputError(f"{self.source}: {what} claims {size} bytes, more than the {most} that it can have; copy the file again")
            self._claim(size, what)
            whole = read_exactly(self.stream, size, self.source, what)
            self.take(min(-size % 8, self.left), "padding")
            return kind, self._typed(whole, kind, what)
        return kind, self._typed(np.frombuffer(data, np.uint8), kind, what)

    def _typed(self, data: NDArray[np.uint8], kind: int, what: str) -> NDArray[Any]:
        if kind not in NUMBERS:
            raise InputError(f"{self.source}: {what} is an element of type {kind}, which is no array of numbers; save it with -v7")
        dtype = np.dtype(self.order + NUMBERS[kind])
        if data.size % dtype.itemsize:
            raise InputError(f"{self.source}: {what} has {data.size} bytes, no number of {dtype.name} numbers; copy the file again")
        return data.view(dtype)


def read_variables(path: Path, wanted: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Returns the wanted variables, arrays in the order of axes that MATLAB shows, of the dtype of their class; others are skipped.

    Raises InputError for a file of another level or kind, one that is damaged, a wanted variable that is not there, comes twice or is no
    array of real numbers, and more than 4 GiB.
    """
    source = str(path)
    found: dict[str, NDArray[Any]] = {}
    with reading(source), path.open("rb") as file:
        size = path.stat().st_size
        header = read_exactly(file, HEADER, source, "the header of a MAT-file").tobytes()
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None or struct.unpack(f"{order}H", header[124:126])[0] != 0x0100:
            raise InputError(f"{source} is no MAT-file of level 5 (its header says another); save it in MATLAB with -v7, or copy it again")
        left = size - HEADER
        for _ in range(MAX_VARIABLES):
            if left < 8 or len(found) == len(wanted):
                break
            kind, count = struct.unpack(f"{order}II", read_exactly(file, 8, source, "a variable's tag").tobytes())
            left -= 8
            if count > left:
                raise InputError(f"{source} is truncated: a variable needs {count} bytes and {left} are there; copy the file again")
            end = file.tell() + count
            _variable(_opened(file, kind, count, order, source), wanted, found)
            file.seek(end)
            left -= count
    for name in wanted:
        if name not in found:
            raise InputError(f"{source} has no variable {name}; copy the file again")
    return found


def _opened(file: IO[bytes], kind: int, count: int, order: str, source: str) -> _Elements:
    """Returns the elements of the variable that comes next."""
    if kind == MATRIX:
        return _Elements(file, order, source, count)
    if kind != COMPRESSED:
        raise InputError(f"{source} has an element of type {kind} where a variable is expected; copy the file again")
    inflated = _Inflated(file, count)
    inner, size = struct.unpack(f"{order}II", read_exactly(inflated, 8, source, "a variable's tag").tobytes())  # type: ignore[arg-type]
    if inner != MATRIX or size > count * MAX_DEFLATE_RATIO:
        raise InputError(f"{source} has a compressed variable that claims type {inner} and {size} bytes; copy the file again")
    return _Elements(inflated, order, source, size)


def _of_class(values: NDArray[Any], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Returns numbers [n] as the dtype of their class; InputError where a cast would make another number of one."""
    same = values.dtype.newbyteorder("=") == dtype
    with np.errstate(all="ignore"):  # what a cast of such numbers gives is compared, and not used
        cast = values.astype(dtype, copy=False)
        kept = np.ones(values.shape, np.bool_) if same else _kept(values, cast)
    if not kept.all():
        wrong = values[int(np.argmin(kept))]
        raise InputError(
            f"{what} is of class {dtype.name}, and holds {wrong!s}, no number of that class; save it again as a class that has it"
        )
    return cast


def _kept(values: NDArray[Any], cast: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns where a cast kept the number exactly; a NaN is kept by floats alone."""
    if values.dtype.kind == "f" and cast.dtype.kind == "f":
        return np.asarray((cast == values) | np.isnan(values))
    whole, other = (cast.dtype, values) if values.dtype.kind == "f" else (values.dtype, cast)
    ends = np.iinfo(whole)
    if other.dtype.kind == "f":  # powers of two, or 0, are exact in every float; beyond them casts to integers are undefined
        within = (other >= float(ends.min)) & (other < 2.0 ** (ends.bits - (ends.min < 0)))
        return np.asarray(within & (cast.astype(values.dtype) == values))
    own = np.iinfo(cast.dtype)
    return np.asarray((values >= max(ends.min, own.min)) & (values <= min(ends.max, own.max)))


def _variable(elements: _Elements, wanted: tuple[str, ...], found: dict[str, NDArray[Any]]) -> None:
    """Puts the variable into `found` where it is wanted."""
    source = elements.source
    _, flags = elements.array("a variable's flags", 8)
    _, shape = elements.array("a variable's shape", 4 * MAX_AXES)
    _, letters = elements.array("a variable's name", MAX_NAME)
    name = letters.tobytes().decode("latin-1")
    if name not in wanted:
        return
    if name in found:
        raise InputError(f"{source} holds {name} twice; write the file again")
    first = int(flags[0]) if flags.size == 2 else 0
    dtype = CLASSES.get(first & 0xFF)
    if dtype is None or first & COMPLEX:
        what = "complex" if dtype is not None else OTHERS.get(first & 0xFF, f"of class {first & 0xFF}")
        raise InputError(f"{source}: {name} is {what}, and an array of real numbers is read; copy the file again")
    axes = tuple(int(axis) for axis in shape)
    if len(axes) < 2 or min(axes) < 0 or prod(axes) * np.dtype(dtype).itemsize > MAX_PIXEL_BYTES:
        raise InputError(f"{source}: {name} claims the shape {list(axes)}, which is no array of at most 4 GiB; copy the file again")
    _, values = elements.array(name, min(elements.left, 8 * prod(axes)))
    if values.size != prod(axes):
        raise InputError(f"{source}: {name} has {values.size} numbers for its shape {list(axes)}; copy the file again")
    # Numbers may be stored in a smaller type than that of their class.
    found[name] = _of_class(values, np.dtype(dtype), f"{source}: {name}").reshape(axes, order="F")
    if isinstance(elements.stream, _Inflated) and not elements.stream.whole():
        raise InputError(f"{source}: {name} does not end where its header says; copy the file again")
