"""Keys of stages: hashes of all that goes in, the code that runs included, without its comments, docstrings and layout."""

from __future__ import annotations

import ast
import gc
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from vsparse.errors import VsparseError
from vsparse.files import canonical_json, read_json, sha256_bytes, write_json
from vsparse.pipeline.cache import cache_directory

ROOT = Path(__file__).resolve().parent.parent
# What can have a docstring.
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# The hashes of source files by those of their bytes, kept beside the stages: parsing the whole package takes half a second.
KNOWN = "code.json"
MAX_KNOWN = 4000
_kept: ContextVar[bool] = ContextVar("_kept", default=True)


def stage_key(stage: str, inputs: dict[str, Any], code: tuple[str, ...]) -> str:
    """Returns the cache key of a stage: a hash of its name, of all that goes in, and of the code that runs."""
    return sha256_bytes(canonical_json({"stage": stage, "inputs": inputs, "code": code_hash(*code)}))


@contextmanager
def keeping_nothing() -> Iterator[None]:
    """In this context hashes of code are computed and not written: to plan a build must change no file."""
    before = _kept.set(False)
    try:
        yield
    finally:
        _kept.reset(before)


@cache
def code_hash(*parts: str) -> str:
    """Returns one hash of the code of the named modules and packages of vsparse, so that changed code is run again.

    Comments, docstrings and layout do not count; files that are not Python count byte for byte.
    """
    hashes, digest = _hashes(cache_directory()), hashlib.sha256()
    for part in parts:
        for path in _sources(ROOT / part):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0{hashes.of(path.read_bytes(), path.suffix)}\0".encode())
    hashes.save()
    return digest.hexdigest()


class Hashes:
    """The hashes of source files, computed once for each content and kept in a folder; what cannot be kept is computed again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / KNOWN
        # Another Python may parse to other trees, and other code than this may hash them otherwise.
        self._by = f"{sys.version} {sha256_bytes(Path(__file__).read_bytes())}"
        self._known: dict[str, str] = {}
        self._changed = False
        with suppress(VsparseError):
            kept = read_json(self._path, "hashes of code")
            if isinstance(kept, dict) and kept.get("by") == self._by and isinstance(kept.get("files"), dict):
                self._known = {str(content): str(found) for content, found in kept["files"].items()}

    def of(self, content: bytes, suffix: str) -> str:
        """Returns the hash of a file: of its syntax tree for a Python source, of its bytes for any other."""
        own = sha256_bytes(content)
        if suffix != ".py":
            return own
        found = self._known.get(own)
        if found is None:
            found = sha256_bytes(computed(content).encode())
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[own], self._changed = found, True
        return found

    def save(self) -> None:
        """Keeps what was computed since; a folder that cannot be written is told of by what needs it."""
        if self._changed and _kept.get():
            with suppress(VsparseError, OSError):
                write_json(self._path, {"by": self._by, "files": dict(self._known)})  # a sweep plans in threads
            self._changed = False


@cache
def _hashes(folder: Path) -> Hashes:
    return Hashes(folder)


def computed(source: bytes) -> str:
    """Returns a text that is the same for two Python sources exactly where their syntax trees are, docstrings left out."""
    collecting = gc.isenabled()
    gc.disable()  # a tree is many small objects without cycles; looking for garbage among them takes as long as parsing
    try:
        return "\0".join(_flat(ast.parse(source)))
    finally:
        if collecting:
            gc.enable()


def _flat(tree: ast.Module) -> list[str]:
    """Returns a syntax tree in prefix order: twice as quick as `ast.dump`."""
    told: list[str] = []

    def tell(value: Any) -> None:
        if isinstance(value, ast.AST):
            told.append(value.__class__.__name__)
            if isinstance(value, DOCUMENTED) and ast.get_docstring(value, clean=False) is not None:
                value.body = value.body[1:]
            for field in value._fields:
                tell(getattr(value, field, None))
        elif isinstance(value, list):
            told.append(f"[{len(value)}")
            for one in value:
                tell(one)
        else:
            told.append(repr(value))

    tell(tree)
    return told


def _sources(base: Path) -> list[Path]:
    """Returns the files of a package, templates included, or the one file of a module."""
    if not base.is_dir():
        return [base.with_suffix(".py")]
    return sorted(path for path in base.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
