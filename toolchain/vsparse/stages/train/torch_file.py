"""A reader for files of torch.save that can build tensors and plain data only: it imports nothing, calls nothing, and unpickles nothing.

torch.load is not used: a file may claim storages larger than their records, which it reads past their end. Memory is bounded by the
file's size.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsparse.data.inert_pickle import InertPickle, Name
from vsparse.errors import InputError

MAX_RECORDS = 200_000
SAVE = 'save the weights alone: torch.save(network.state_dict(), "weights.pt")'


@dataclass(frozen=True)
class _Storage:
    """The numbers of one or more tensors, flat."""

    values: Tensor


_ORDERED = Name("collections.OrderedDict")
_TENSOR = Name("torch._utils._rebuild_tensor_v2")
_PARAMETER = Name("torch._utils._rebuild_parameter")
_STORAGES = {
    Name(f"torch.{kind}Storage"): dtype
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


class _Reader(InertPickle):
    known = frozenset({_ORDERED, _TENSOR, _PARAMETER, *_STORAGES})

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__()
        self.archive, self.folder = archive, folder
        self.storages: dict[str, _Storage] = {}

    def damaged(self, what: str) -> InputError:
        return _damaged(f"it has {what}")

    def unknown_name(self, text: str) -> InputError:
        return InputError(f"it holds the Python object {text}, and only tensors are read, never code; {SAVE}")

    def unknown_opcode(self, code: str) -> InputError:
        return InputError(f"it uses the pickle opcode {code}, which tensors do not need, and code is never executed; {SAVE}")

    def reference(self, found: Any) -> _Storage:
        """Returns the storage of a record, whose size is compared with what the file claims."""
        if not (isinstance(found, tuple) and len(found) == 5 and found[0] == "storage" and isinstance(found[1], Name)):
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

    def call(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        if function == _ORDERED and arguments == ():
            return {}
        if function == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], Tensor):
            return arguments[0]
        if function == _TENSOR and len(arguments) in (6, 7):
            return _tensor(*arguments[:4])
        raise _damaged(f"it calls {function.text} in another way than torch.save writes")

    def build(self, value: Any, _state: Any) -> None:
        if not isinstance(value, dict):  # an OrderedDict, beside which the versions of modules stand
            raise self.damaged("a broken dictionary")

    def key(self, found: Any) -> str | int:
        if not isinstance(found, str | int):
            raise self.damaged("a key that is neither text nor a number")
        return found


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
    return _Reader(archive, folder).read(archive.read(mains[0]))
