"""A reader for the pickles of CIFAR's python version that can build plain data and arrays of bytes only.

Memory is bounded by the file's size: no opcode copies without a budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import reading
from vsparse.data.inert_pickle import InertPickle, Name
from vsparse.errors import InputError


class _Type:
    """A dtype under construction; only `u1` is let through."""


@dataclass
class _Array:
    """An array under construction: `_reconstruct` makes it empty, BUILD fills it."""

    values: NDArray[np.uint8] | None = None


_RECONSTRUCT = {Name("numpy.core.multiarray._reconstruct"), Name("numpy._core.multiarray._reconstruct")}
_NDARRAY = Name("numpy.ndarray")
_DTYPE = Name("numpy.dtype")
_ENCODE = Name("_codecs.encode")


class _Reader(InertPickle):
    known = frozenset({*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE})

    def __init__(self, source: str, size: int) -> None:
        super().__init__()
        self.source = source
        self.budget = 2 * size  # bytes that `encode` may make

    def damaged(self, what: str) -> InputError:
        way = "use the binary version of the dataset"
        return InputError(f"{self.source} is a pickle with {what}, which CIFAR-10's files do not have; it is not read: {way}")

    def unknown_name(self, text: str) -> InputError:
        return self.damaged(f"the name {text!r}")

    def unknown_opcode(self, code: str) -> InputError:
        return self.damaged(f"the opcode {code}")

    def call(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        if function in _RECONSTRUCT and len(arguments) == 3 and arguments[0] is not None and arguments[0] == _NDARRAY:
            return _Array()
        if function == _DTYPE and len(arguments) == 3 and arguments[0] in ("u1", b"u1"):
            return _Type()
        if function == _ENCODE and len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ("latin1", b"latin1"):
            self.budget -= len(arguments[0])
            if self.budget < 0:
                raise self.damaged("more text than the file has bytes")
            return arguments[0].encode("latin-1")
        raise self.damaged(f"a call of {function.text!r} with other arguments")

    def build(self, value: Any, state: Any) -> None:
        if isinstance(value, _Type) and isinstance(state, tuple):
            return  # byte order and the like, which bytes do not have
        if isinstance(value, _Array) and isinstance(state, tuple) and len(state) == 5 and value.values is None:
            _, shape, kind, fortran, data = state
            if (
                isinstance(shape, tuple)
                and len(shape) == 2
                and all(type(size) is int and size >= 0 for size in shape)
                and isinstance(kind, _Type)
                and fortran is False
                and isinstance(data, bytes)
                and len(data) == shape[0] * shape[1]
            ):
                value.values = np.frombuffer(data, dtype=np.uint8).reshape(shape)
                return
        raise self.damaged("an array that is not two axes of unsigned bytes")

    def key(self, found: Any) -> str:
        if not isinstance(found, str | bytes):
            raise self.damaged("a dictionary key that is no text")
        return found.decode("latin-1") if isinstance(found, bytes) else found


def read_plain_pickle(data: bytes, source: str) -> dict[str, Any]:
    """Returns the dictionary in a pickle.

    Its keys are text; its values numbers, text, bytes, lists, tuples, dictionaries and uint8 arrays [rows, columns]. Raises InputError
    that names the first opcode or global name that is not needed for this, and for damaged files.
    """
    reader = _Reader(source, len(data))
    with reading(source):
        content = reader.read(data)
    if not isinstance(content, dict):
        raise reader.damaged("something else than one dictionary")
    return {key: _finished(value, reader) for key, value in content.items()}


def _finished(value: Any, reader: _Reader) -> Any:
    if isinstance(value, _Array):
        if value.values is None:
            raise reader.damaged("an array without values")
        return value.values
    if isinstance(value, Name | _Type):
        raise reader.damaged("a bare name")
    return value
