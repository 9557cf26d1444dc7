"""Reading files that may be damaged or hostile: exact counts, bounded memory, and no exception but InputError."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError

# Deflate cannot expand more than this (zlib's technical notes: 1032:1): a larger claim is false, known before decompressing anything.
MAX_DEFLATE_RATIO = 1032
_PIECE = 4 * 2**20
_DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    struct.error,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)

# What can go wrong around parsing: files that vanish or may not be read, and machines that are too small.
SYSTEM = (OSError, MemoryError)


@contextmanager
def reading(source: str, damage: tuple[type[Exception], ...] = _DAMAGE) -> Iterator[None]:
    """Turns what the standard library raises for a damaged file (`damage`; `SYSTEM` for less) into an InputError that names `source`."""
    try:
        yield
    except damage as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise InputError(f"{source} cannot be read ({reason}); the file is damaged or not of this format: copy it again") from error


def read_exactly(stream: IO[bytes], count: int, source: str, what: str) -> NDArray[np.uint8]:
    """Returns `count` bytes as a uint8 array; raises InputError where the stream ends before; memory is touched only as bytes arrive."""
    with reading(source):
        data = np.empty(count, dtype=np.uint8)
        view = data.data
        done = 0
        while done < count:
            piece = stream.read(min(_PIECE, count - done))
            if not piece:
                raise InputError(f"{source} is truncated: {what} needs {count} bytes and {done} are there; copy the file again")
            view[done : done + len(piece)] = piece
            done += len(piece)
    return data


def expect_end(stream: IO[bytes], source: str) -> None:
    """Raises InputError where bytes follow; reading the end also lets gzip and zip check their sums."""
    with reading(source):
        if stream.read(1):
            raise InputError(f"{source} has bytes after its last sample; the file is damaged or its header is wrong: copy it again")


@contextmanager
def open_plain_or_gzip(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Yields a stream of the content of a file, gzip or not (told by its first bytes), and the most bytes it can hold."""
    source = str(path)
    with reading(source):
        if not path.is_file():
            raise InputError(f"{source} is not a file; check the path")
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                    yield cast(IO[bytes], stream), size * MAX_DEFLATE_RATIO
            else:
                file.seek(0)
                yield file, size


class Zip:
    """A zip whose members are read one at a time and never extracted."""

    def __init__(self, path: Path) -> None:
        """Opens the file; raises InputError where it is no zip, or where two members have one name."""
        self.source = str(path)
        self.size = path.stat().st_size if path.is_file() else 0
        with reading(self.source):
            self._file = zipfile.ZipFile(path)
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in self._file.infolist():
            if info.filename in self.members:
                self.close()
                raise InputError(f"{self.source} holds {info.filename} twice; write the zip again")
            self.members[info.filename] = info

    def __enter__(self) -> Zip:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @contextmanager
    def open(self, name: str, limit: int) -> Iterator[IO[bytes]]:
        """Yields a stream of a member.

        Raises InputError, before decompressing, for one that claims over `limit` bytes or more than it can hold.
        """
        info = self.members[name]
        source = f"{self.source}: {name}"
        if info.flag_bits & 1:
            raise InputError(f"{source} is encrypted; save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{source} is compressed with method {info.compress_type}; save it stored or deflated")
        ratio = MAX_DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1
        if info.compress_size > self.size or info.file_size > info.compress_size * ratio:
            raise InputError(f"{source} claims {info.file_size} bytes, more than the zip can hold; the file is damaged: copy it again")
        if info.file_size > limit:
            raise InputError(f"{source} claims {info.file_size} bytes, more than the {limit} that are read; give a smaller file")
        with reading(source), self._file.open(info) as stream:
            yield stream
