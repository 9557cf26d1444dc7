"""A reader for files of torch.save that can build tensors and plain data only: it imports nothing, calls nothing, and unpickles nothing.

It interprets the few opcodes that a dictionary of tensors needs (found by `pickletools.genops`) on a stack of its own. Global names are
inert tags compared with a short list; every other opcode and name is refused by name. torch.load is not used: a file may claim storages
larger than their records, which it reads past their end. Memory is bounded by the file's size.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsparse.errors import InputError

MAX_OPCODES = 5_000_000
MAX_RECORDS = 200_000
_MARK = object()
SAVE = 'save the weights alone: torch.save(network.state_dict(), "weights.pt")'


@dataclass(frozen=True)
class _Name:
    """A global name met in the file: a tag, never looked up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """The numbers of one or more tensors, flat."""

    values: Tensor


_ORDERED = _Name("collections.OrderedDict")
_TENSOR = _Name("torch._utils._rebuild_tensor_v2")
_PARAMETER = _Name("torch._utils._rebuild_parameter")
_STORAGES = {
    _Name(f"torch.{kind}Storage"): dtype
    for kind, dtype in (
        ("Float", torch.float32),
        ("Double", torch.float64),
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Long", torch.int64),
        ("Int", torch.int32),
        ("Short", torch.int16),
        ("Char", torch.int8),
        ("Byte", torch.uint8),
        ("Bool", torch.bool),
    )
}
_KNOWN = {_ORDERED, _TENSOR, _PARAMETER, *_STORAGES}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSH = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self.archive, self.folder = archive, folder
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _damaged("its stack is unbalanced")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise _damaged("a collection is missing")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                values = self.stack[position + 1 :]
                del self.stack[position:]
                return values
        raise _damaged("its stack is unbalanced")

    def storage(self, found: Any) -> _Storage:
        """Returns the storage of a record, whose size is compared with what the file claims."""
        if not (isinstance(found, tuple) and len(found) == 5 and found[0] == "storage" and isinstance(found[1], _Name)):
            raise _damaged("a reference to a storage has another form")
        dtype, key, count = _STORAGES.get(found[1]), found[2], found[4]
        if dtype is None or not isinstance(key, str) or type(count) is not int:
            raise _damaged("a reference to a storage has another form")
        known = self.storages.get(key)
        if known is None:
            record = f"{self.folder}data/{key}"
            try:
                data = self.archive.read(record)
            except KeyError:
                raise _damaged(f"it lacks the record {key[:40]!r}") from None
            if len(data) != count * dtype.itemsize:
                raise _damaged(f"the record {key[:40]!r} has {len(data)} bytes, and {count} values of {dtype} are claimed")
            known = _Storage(torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype))
            self.storages[key] = known
        if known.values.dtype != dtype or len(known.values) != count:
            raise _damaged(f"the record {key[:40]!r} is claimed in two ways")
        return known

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _damaged("it calls something that is no name")
        if function == _ORDERED and arguments == ():
            return {}
        if function == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], Tensor):
            return arguments[0]
        if function == _TENSOR and len(arguments) in (6, 7):
            return _tensor(*arguments[:4])
        raise _damaged(f"it calls {function.text} in another way than torch.save writes")

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _PUSH:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top(object)
        elif code in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise _damaged("it refers to nothing")
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
            self.items(self.top(dict), pairs)
        elif code in ("APPEND", "APPENDS"):
            values = [self.pop()] if code == "APPEND" else self.pop_to_mark()
            self.top(list).extend(values)
        elif code == "GLOBAL":
            name = _Name(argument.replace(" ", ".", 1))
            if name not in _KNOWN:
                raise InputError(f"it holds the Python object {name.text[:80]}, and only tensors are read, never code; {SAVE}")
            stack.append(name)
        elif code == "BINPERSID":
            stack.append(self.storage(self.pop()))
        elif code == "REDUCE":
            arguments, function = self.pop(), self.pop()
            stack.append(self.call(function, arguments))
        elif code == "BUILD":  # versions of modules, beside an OrderedDict
            self.pop()
            self.top(dict)
        elif code not in ("PROTO", "STOP"):
            raise InputError(f"it uses the pickle opcode {code}, which tensors do not need, and code is never executed; {SAVE}")

    def items(self, target: dict[Any, Any], pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise _damaged("a dictionary is broken")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _damaged("a key is neither text nor a number")
            target[key] = value


def _damaged(why: str) -> InputError:
    return InputError(f"it is no file of torch.save, or is damaged ({why}); {SAVE}")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Returns a view of a storage that has as many elements as the tensor, so that no memory is asked for."""
    whole = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else []
    if not isinstance(storage, _Storage) or not whole or len(size) != len(stride) or any(type(n) is not int or n < 0 for n in whole):
        raise _damaged("a tensor has another form")
    count = 1
    for extent in size:
        count *= extent
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True)) if count else 0
    if count > len(storage.values) or (count and last >= len(storage.values)):
        raise _damaged(f"a tensor of {count} elements is claimed of a storage of {len(storage.values)}")
    if count == 0:
        return torch.empty(0, dtype=storage.values.dtype)
    return storage.values.as_strided(size, stride, offset)


def read_torch_file(data: bytes) -> Any:
    """Returns the dictionaries, lists, numbers, texts and tensors of a file of torch.save, given as its bytes.

    Tensors that share a storage in the file share memory here. Raises InputError, as the end of a sentence, for the format before
    torch 1.6, for TorchScript, for every Python object but tensors, which is named, and for files that are damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, len(data))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise _damaged(f"its archive cannot be opened: {error}") from error
    except (ValueError, TypeError, OverflowError, RecursionError, RuntimeError) as error:
        raise _damaged(f"{type(error).__name__}: {str(error)[:80]}") from error


def _read(archive: zipfile.ZipFile, size: int) -> Any:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    mains = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(mains) != 1 or len(set(names)) < len(names) or len(names) > MAX_RECORDS:
        raise _damaged("it should hold one data.pkl, and each record once")
    folder = mains[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise InputError(f"it is TorchScript, which holds code; {SAVE}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(entry.file_size for entry in entries) > size:
        raise _damaged("its records should be stored uncompressed")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise InputError(f"its numbers are big-endian; {SAVE} on another machine")
    reader = _Reader(archive, folder)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(archive.read(mains[0]))):
        if count >= MAX_OPCODES:
            raise _damaged("it has too many opcodes")
        reader.step(opcode.name, argument)
    if len(reader.stack) != 1:
        raise _damaged("its stack is unbalanced")
    return reader.stack[0]
