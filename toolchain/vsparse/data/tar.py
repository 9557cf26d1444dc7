"""Members of a tar.gz read in one pass, without extracting: only plain names and plain files, so that no header can ask for memory."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from vsparse.data.bounded import open_plain_or_gzip, read_exactly, reading
from vsparse.errors import InputError

BLOCK = 512
MAX_STREAM_BYTES = 2 * 2**30


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        piece = stream.read(min(count, 2**20))
        if not piece:
            return
        count -= len(piece)


def _size(field: bytes, source: str) -> int:
    text = field.rstrip(b"\0 ").lstrip(b" ")
    if not text or text.strip(b"01234567"):
        raise InputError(f"{source} has a member whose size cannot be read; copy the file again")
    return int(text, 8)


def read_members(path: Path, names: set[str], limit: int) -> dict[str, bytes]:
    """Returns the content of the regular files whose last name is in `names`, each of at most `limit` bytes.

    The headers are those of POSIX ustar (IEEE 1003.1). Raises InputError for a wrong checksum, a truncated archive, a name that comes
    twice, and a stream of over 2 GiB.
    """
    source = str(path)
    found: dict[str, bytes] = {}
    total = 0
    with open_plain_or_gzip(path) as (stream, _):
        while True:
            header = read_exactly(stream, BLOCK, source, "a member's header").tobytes()
            if not header.strip(b"\0"):
                return found
            if _size(header[148:156], source) != sum(header) - sum(header[148:156]) + 8 * 32:
                raise InputError(f"{source} is not a tar archive, or is damaged (a header's checksum is wrong); copy the file again")
            size = _size(header[124:136], source)
            padded = -(-size // BLOCK) * BLOCK
            total += BLOCK + padded
            if total > MAX_STREAM_BYTES:
                raise InputError(
                    f"{source} holds more than the {MAX_STREAM_BYTES // 2**30} GiB that are read; it is not CIFAR-10's archive"
                )
            with reading(source):
                name = header[:100].split(b"\0")[0].decode().rsplit("/", 1)[-1]
            if header[156:157] not in (b"0", b"\0") or name not in names:
                _skip(stream, padded)
                continue
            if name in found:
                raise InputError(f"{source} holds {name} twice; copy the file again")
            if size > limit:
                raise InputError(f"{source}: {name} claims {size} bytes, more than the {limit} that are read; it is not CIFAR-10's archive")
            found[name] = read_exactly(stream, size, source, name).tobytes()
            _skip(stream, padded - size)
