"""An interpreter of pickles that imports nothing and calls nothing: a stack machine for the opcodes that plain data need.

Its opcodes are found by `pickletools.genops`. Global names are inert tags compared with a short list; every other opcode and name is
refused by name. What a format builds out of them, the class of its reader says.
"""

from __future__ import annotations

import pickletools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from vsparse.errors import InputError

MAX_OPCODES = 5_000_000
_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSH = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING_TO_DO = {"PROTO", "FRAME", "STOP"}


@dataclass(frozen=True)
class Name:
    """A global name met in the file: a tag, never looked up."""

    text: str


class InertPickle(ABC):
    """Reads one pickle. A subclass names the global names that it knows and says what a call, a state and a reference stand for."""

    known: ClassVar[frozenset[Name]]

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """Returns the one object of a pickle.

        Raises what the subclass's refusals make, and ValueError of `pickletools` for bytes that are no pickle.
        """
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise self.damaged("too many opcodes")
            self._step(opcode.name, argument)
            if opcode.name == "STOP" and position is not None and position + 1 != len(data):
                raise self.damaged("bytes after its end")
        if len(self.stack) != 1:
            raise self.damaged("an unbalanced stack")
        return self.pop()

    @abstractmethod
    def damaged(self, what: str) -> InputError:
        """The error for a pickle with something that this kind of file does not have."""

    @abstractmethod
    def unknown_name(self, text: str) -> InputError:
        """The error for a global name that is not known."""

    @abstractmethod
    def unknown_opcode(self, code: str) -> InputError:
        """The error for an opcode that is not interpreted."""

    @abstractmethod
    def call(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        """What the call of a known name stands for."""

    @abstractmethod
    def build(self, value: Any, state: Any) -> None:
        """Gives an object its state."""

    @abstractmethod
    def key(self, found: Any) -> str | int:
        """The key of a dictionary."""

    def reference(self, _found: Any) -> Any:
        """What a reference to something outside of the pickle stands for."""
        raise self.unknown_opcode("BINPERSID")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.damaged("an unbalanced stack")
        return self.stack.pop()

    def top(self, kind: type, name: str) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind) or self.stack[-1] is _MARK:
            raise self.damaged(f"a broken {name}")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                values = self.stack[position + 1 :]
                del self.stack[position:]
                return values
        raise self.damaged("an unbalanced stack")

    def _name(self, module: Any, attribute: Any) -> Name:
        name = Name(f"{module}.{attribute}" if isinstance(module, str) and isinstance(attribute, str) else "?")
        if name not in self.known:
            raise self.unknown_name(name.text[:80])
        return name

    def _items(self, target: dict[Any, Any], pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise self.damaged("a broken dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[self.key(key)] = value

    def _called(self) -> Any:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise self.damaged("a call of something that is no name")
        return self.call(function, arguments)

    def _step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _PUSH:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("SHORT_BINSTRING", "BINSTRING"):  # Python 2's text: genops decodes it as Latin-1
            stack.append(argument.encode("latin-1"))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if code == "MEMOIZE" else argument] = self.top(object, "stack")
        elif code in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise self.damaged("a reference to nothing")
            stack.append(self.memo[argument])
        elif code == "MARK":
            stack.append(_MARK)
        elif code == "EMPTY_DICT":
            stack.append({})
        elif code == "EMPTY_LIST":
            stack.append([])
        elif code in _TUPLES:
            stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[code])])))
        elif code == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif code in ("SETITEM", "SETITEMS"):
            pairs = [self.pop(), self.pop()][::-1] if code == "SETITEM" else self.pop_to_mark()
            self._items(self.top(dict, "dictionary"), pairs)
        elif code in ("APPEND", "APPENDS"):
            values = [self.pop()] if code == "APPEND" else self.pop_to_mark()
            self.top(list, "list").extend(values)
        elif code == "GLOBAL":
            stack.append(self._name(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(self._name(module, attribute))
        elif code == "BINPERSID":
            stack.append(self.reference(self.pop()))
        elif code == "REDUCE":
            stack.append(self._called())
        elif code == "BUILD":
            state = self.pop()
            self.build(self.top(object, "state"), state)
        elif code not in _NOTHING_TO_DO:
            raise self.unknown_opcode(code)
