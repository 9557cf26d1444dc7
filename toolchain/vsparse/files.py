"""Files: atomic writes, hashes, canonical JSON, and directories that are whole or absent."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsparse.errors import InputError

MAX_TEXT_BYTES = 256 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """A disk, or a quota, is full; `strerror` names the folder, the bytes that were to be written and those that are free."""

    def __init__(self, number: int, folder: Path, needed: int | None) -> None:
        free = _free(folder)
        parts = [f"{_size(needed)} to be written"] if needed is not None else []
        parts += [f"{_size(free)} free"] if free is not None else []
        super().__init__(number, f"no space is left in {folder}" + (f" ({', '.join(parts)})" if parts else ""), str(folder))


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def refused(error: OSError) -> str:
    """Returns one sentence for what the system refused: the file or folder, the reason, and the way out."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        # copytree collects (from, to, text of the error) of each file.
        _, place, reason = error.args[0][0]
        return _sentence(str(place), str(reason))
    if isinstance(error, DiskFullError):
        return f"{error.strerror}; free space there, or choose another folder (--out; VSPARSE_CACHE for the stages)"
    place = error.filename2 or error.filename  # of a copy, the second is where it goes
    if error.errno in FULL and place:
        return refused(DiskFullError(error.errno, Path(os.fsdecode(place)).parent, None))
    return _sentence(os.fsdecode(place) if place else "", error.strerror or str(error))


def _sentence(place: str, reason: str) -> str:
    return f"the system refused{f' {place}' if place else ''}: {reason}; free space, correct its rights, or choose another folder"


def copy_tree(source: Path, destination: Path, leave_out: Collection[str] = ()) -> None:
    """Copies the files under a directory, those of the names `leave_out` apart, into a directory that may be there.

    Raises DiskFullError with the bytes of the whole copy; any other OSError as it comes.
    """
    paths = [path for path in sorted(source.rglob("*")) if path.is_file() and path.name not in leave_out]
    needed = sum(path.stat().st_size for path in paths)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for path in paths:
            target = destination / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(error.errno, destination, needed) from error
        raise


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
    """Writes a file atomically: at every moment the old content or the new one, on disk before the name moves unless not `durable`.

    Raises DiskFullError where there is no space for it, any other OSError as it comes.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise DiskFullError(error.errno, path.parent, len(data)) from error
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
        if path.is_dir():
            raise InputError(f"{what} {path} is a folder, and a file is wanted here; give the file")
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
