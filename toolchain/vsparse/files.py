"""Files: atomic writes, hashes, canonical JSON, and directories that are whole or absent."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsparse.errors import InputError

MAX_TEXT_BYTES = 256 * 2**20


def sha256_bytes(data: bytes) -> str:
    """Returns the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Returns the one JSON text of a value: sorted keys, no spaces, UTF-8, and no NaN or infinity (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes a file atomically: at every moment the old content or the new one, on disk before the name moves unless not `durable`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinities are refused (ValueError)."""
    write_bytes(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """Returns indented JSON as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_bytes(path: Path, what: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Reads a file of at most `limit` bytes; raises InputError that names `what`, the path and the reason."""
    try:
        if not path.is_file():
            raise InputError(f"{what} {path} is not there; check the path")
        if path.stat().st_size > limit:
            raise InputError(f"{what} {path} has {path.stat().st_size} bytes, more than the {limit} that are read; give a smaller file")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path, what: str) -> Any:
    """Reads a JSON file; raises InputError for one that is absent, too large, not UTF-8 or malformed."""
    data = read_bytes(path, what)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} is not valid JSON: {error}; restore it, or build it again") from error


def exchange(a: Path, b: Path) -> None:
    """Swaps two existing paths in one step (renameat2 with RENAME_EXCHANGE), or in two renames where the system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, rename_exchange = -100, 2
    if hasattr(libc, "renameat2") and libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0:
        return
    spare = b.with_name(f".{b.name}.swap-{os.getpid()}")
    os.rename(b, spare)
    os.rename(a, b)
    os.rename(spare, a)


def remove_stale(final: Path) -> None:
    """Removes what killed writers of `final` left beside it; call it only while holding the lock of `final`."""
    for leftover in final.absolute().parent.glob(f".{final.name}.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Yields an empty directory beside `final` that takes its name, in one step, when the block ends without an error.

    At every moment `final` is the old directory or the new one; on an error nothing of the new one is left.
    """
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.new-"))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        if final.exists():
            exchange(temporary, final)
        else:
            os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
