"""A reader for the pickles of CIFAR-10's python version that can build plain data only: it imports nothing and calls nothing.

It interprets the few opcodes such files use (found by `pickletools.genops`) on a stack of its own. Global names are inert tags compared
with a short list; every other opcode and name is refused by name. Memory is bounded by the file's size: no opcode copies without a budget.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import reading
from vsparse.errors import InputError

MAX_OPCODES = 5_000_000
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """A global name met in the file: a tag, never looked up."""

    text: str


class _Type:
    """A dtype under construction; only `u1` is let through."""


@dataclass
class _Array:
    """An array under construction: `_reconstruct` makes it empty, BUILD fills it."""

    values: NDArray[np.uint8] | None = None


_RECONSTRUCT = {_Name("numpy.core.multiarray._reconstruct"), _Name("numpy._core.multiarray._reconstruct")}
_NDARRAY = _Name("numpy.ndarray")
_DTYPE = _Name("numpy.dtype")
_ENCODE = _Name("_codecs.encode")
_KNOWN = {*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSH = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    def __init__(self, source: str, size: int) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = 2 * size  # bytes that `encode` may make

    def refuse(self, what: str) -> InputError:
        way = "use the binary version of the dataset"
        return InputError(f"{self.source} is a pickle with {what}, which CIFAR-10's files do not have; it is not read: {way}")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.refuse("an unbalanced stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                values = self.stack[position + 1 :]
                del self.stack[position:]
                return values
        raise self.refuse("an unbalanced stack")

    def name(self, module: Any, attribute: Any) -> _Name:
        name = _Name(f"{module}.{attribute}")
        if name not in _KNOWN:
            raise self.refuse(f"the name {name.text[:80]!r}")
        return name

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise self.refuse("a call without arguments")
        if isinstance(function, _Name):
            if function in _RECONSTRUCT and len(arguments) == 3 and arguments[0] is not None and arguments[0] == _NDARRAY:
                return _Array()
            if function == _DTYPE and len(arguments) == 3 and arguments[0] in ("u1", b"u1"):
                return _Type()
            if function == _ENCODE and len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ("latin1", b"latin1"):
                self.budget -= len(arguments[0])
                if self.budget < 0:
                    raise self.refuse("more text than the file has bytes")
                return arguments[0].encode("latin-1")
            raise self.refuse(f"a call of {function.text!r} with other arguments")
        raise self.refuse("a call of something that is no name")

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
        raise self.refuse("an array that is not two axes of unsigned bytes")

    def items(self, target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict) or len(pairs) % 2:
            raise self.refuse("a broken dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | bytes):
                raise self.refuse("a dictionary key that is no text")
            target[key.decode("latin-1") if isinstance(key, bytes) else key] = value

    def extend(self, target: Any, values: list[Any]) -> None:
        if not isinstance(target, list):
            raise self.refuse("a broken list")
        target.extend(values)

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _PUSH:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("SHORT_BINSTRING", "BINSTRING"):  # Python 2's text: genops decodes it as Latin-1
            stack.append(argument.encode("latin-1"))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if not stack:
                raise self.refuse("an unbalanced stack")
            self.memo[len(self.memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise self.refuse("a reference to nothing")
            stack.append(self.memo[argument])
        elif code == "MARK":
            stack.append(_MARK)
        elif code == "EMPTY_DICT":
            stack.append({})
        elif code == "EMPTY_LIST":
            stack.append([])
        elif code in _TUPLES:
            parts = [self.pop() for _ in range(_TUPLES[code])]
            stack.append(tuple(reversed(parts)))
        elif code == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif code in ("SETITEM", "SETITEMS"):
            pairs = [self.pop(), self.pop()][::-1] if code == "SETITEM" else self.pop_to_mark()
            self.items(stack[-1] if stack else None, pairs)
        elif code in ("APPEND", "APPENDS"):
            values = [self.pop()] if code == "APPEND" else self.pop_to_mark()
            self.extend(stack[-1] if stack else None, values)
        elif code == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(self.name(module, attribute))
        elif code == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(self.name(module, attribute) if isinstance(module, str) and isinstance(attribute, str) else self.name("?", "?"))
        elif code == "REDUCE":
            arguments, function = self.pop(), self.pop()
            stack.append(self.call(function, arguments))
        elif code == "BUILD":
            state = self.pop()
            self.build(stack[-1] if stack else None, state)
        elif code not in ("PROTO", "FRAME", "STOP"):
            raise self.refuse(f"the opcode {code}")


def read_plain_pickle(data: bytes, source: str) -> dict[str, Any]:
    """Returns the dictionary in a pickle.

    Its keys are text; its values integers, text, bytes, lists, tuples, dictionaries and uint8 arrays [rows, columns]. Raises InputError
    that names the first opcode or global name that is not needed for this, and for damaged files.
    """
    reader = _Reader(source, len(data))
    with reading(source):
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise reader.refuse("too many opcodes")
            reader.step(opcode.name, argument)
            if opcode.name == "STOP" and position is not None and position + 1 != len(data):
                raise reader.refuse("bytes after its end")
    if len(reader.stack) != 1 or not isinstance(reader.stack[0], dict):
        raise reader.refuse("something else than one dictionary")
    content: dict[str, Any] = reader.stack[0]
    return {key: _finished(value, reader) for key, value in content.items()}


def _finished(value: Any, reader: _Reader) -> Any:
    if isinstance(value, _Array):
        if value.values is None:
            raise reader.refuse("an array without values")
        return value.values
    if isinstance(value, _Name | _Type):
        raise reader.refuse("a bare name")
    return value
