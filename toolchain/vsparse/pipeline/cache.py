"""The stage cache: complete results, keyed by the content of all inputs, and scratch space to resume from."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, time

from vsparse.errors import InputError, VsparseError
from vsparse.files import new_directory, read_json, remove_stale, sha256_file, write_json

SEAL = "stage.json"
FINISHED, UNFINISHED = "stages", "work"
DAY = 86400.0


def cache_directory() -> Path:
    """Returns where stage results are kept: VSPARSE_CACHE, else the user's cache folder."""
    chosen = os.environ.get("VSPARSE_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vsparse"


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache: a finished stage, or what an interrupted one resumes from; `used` is the Unix time of its last use."""

    path: Path
    stage: str
    key: str
    finished: bool
    bytes: int
    used: float


@dataclass(frozen=True)
class KeptStage:
    """How long a finished stage took, and how many bytes it takes."""

    seconds: float
    bytes: int


class StageCache:
    """Finished stages under `stages/`, unfinished ones under `work/`; one process at a time works on one key."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_directory()

    def finished(self, stage: str, key: str) -> Path | None:
        """Returns the directory of a finished stage whose files still have their recorded hashes, or None."""
        directory = self.root / FINISHED / f"{stage}-{key}"
        if not directory.is_dir():
            return None
        try:
            seal = read_json(directory / SEAL, "stage record")
            whole = all(sha256_file(directory / name) == digest for name, digest in seal["files"].items())
        except (VsparseError, OSError, KeyError, TypeError, AttributeError):
            whole = False
        if whole:
            with suppress(OSError):  # a cache that can only be read is one too
                os.utime(directory / SEAL)
            return directory
        shutil.rmtree(directory, ignore_errors=True)
        return None

    def look(self, stage: str, key: str) -> KeptStage | None:
        """Returns what a finished stage took, or None where there is none; nothing is hashed, marked as used or removed."""
        directory = self.root / FINISHED / f"{stage}-{key}"
        try:
            seconds = self.seconds(directory)
        except (VsparseError, OSError, KeyError, TypeError, ValueError):
            return None
        return KeptStage(seconds, _size_and_use(directory)[0])

    def seconds(self, directory: Path) -> float:
        """Returns how long a finished stage took when it ran."""
        return float(read_json(directory / SEAL, "stage record")["seconds"])

    def store(self, stage: str, key: str, fill: Callable[[Path], None], seconds: float | None = None) -> Path:
        """Fills a new stage directory and puts it in place in one step, sealed with the hashes of its files."""
        final = self.root / FINISHED / f"{stage}-{key}"
        started = perf_counter()
        with new_directory(final) as directory:
            fill(directory)
            files = {p.relative_to(directory).as_posix(): sha256_file(p) for p in sorted(directory.rglob("*")) if p.is_file()}
            took = perf_counter() - started if seconds is None else seconds
            write_json(directory / SEAL, {"stage": stage, "key": key, "seconds": took, "files": files})
        return final

    def run(self, stage: str, key: str, work: Callable[[Path, Path], None]) -> tuple[Path, bool]:
        """Returns the finished stage and whether it was reused; otherwise calls `work(scratch, output)` and stores its output.

        `scratch` outlives an interrupted run, so that the work can resume from what it left there.
        """
        with self.lock(f"{stage}-{key[:16]}"):
            found = self.finished(stage, key)
            if found is not None:
                return found, True
            remove_stale(self.root / FINISHED / f"{stage}-{key}")
            scratch = self.root / UNFINISHED / f"{stage}-{key}"
            scratch.mkdir(parents=True, exist_ok=True)
            done = self.store(stage, key, lambda output: work(scratch, output))
            shutil.rmtree(scratch, ignore_errors=True)
            return done, False

    def entries(self) -> list[CacheEntry]:
        """Returns what the cache holds, the largest first."""
        found = []
        for kind in (FINISHED, UNFINISHED):
            for path in sorted((self.root / kind).glob("*")):
                stage, _, key = path.name.rpartition("-")
                if stage and not path.name.startswith(".") and path.is_dir() and not path.is_symlink():
                    found.append(CacheEntry(path, stage, key, kind == FINISHED, *_size_and_use(path)))
        return sorted(found, key=lambda entry: -entry.bytes)

    def prune(self, days: float, *, dry_run: bool = False) -> list[CacheEntry]:
        """Removes what was not used for so many days, and returns it; what a process works on stays. Nothing is lost but time."""
        before = time() - days * DAY
        gone = []
        for entry in self.entries():
            if entry.used > before:
                continue
            try:
                with self.lock(f"{entry.stage}-{entry.key[:16]}", wait=False):
                    if not dry_run:
                        aside = entry.path.with_name(f".{entry.path.name}.{os.getpid()}")
                        entry.path.rename(aside)  # in one step: a folder that lacks files would be read as one that was changed
                        shutil.rmtree(aside, ignore_errors=True)
            except BlockingIOError:
                continue
            except OSError as error:
                raise InputError(f"the cache {self.root} cannot be changed: {error.strerror}; remove {entry.path.name} by hand") from error
            gone.append(entry)
        return gone

    @contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Holds the lock of that name; a second process waits for it, and the kernel frees it when its holder dies.

        Without `wait`, BlockingIOError where another process holds it.
        """
        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"the cache {self.root} cannot be written: {error.strerror}; set VSPARSE_CACHE to a folder of your own"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(handle)


def _size_and_use(path: Path) -> tuple[int, float]:
    """Returns the bytes of a folder's files and when one was written last; files may go meanwhile."""
    total, used = 0, 0.0
    for file in path.rglob("*"):
        with suppress(OSError):
            told = file.lstat()
            total, used = total + told.st_size, max(used, told.st_mtime)
    return total, used or path.stat().st_mtime
