"""Classes that a recipe names: ours by their tables, the user's own as `package.module:Class`, whose code is executed.

What is done to a user's own architecture is done to these: imported only where a network is trained, never where a recipe or an artifact
is read; their errors are told with type, message and line; and what they compute is part of the key under which results are kept.
"""

from __future__ import annotations

import ast
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from vsparse.errors import InputError, VsparseError
from vsparse.files import sha256_bytes
from vsparse.graph.user_code import described, imported
from vsparse.recipe_train import Train

T = TypeVar("T")

INSTALLED = ("site-packages", "dist-packages")


def named_class(name: str, table: Mapping[str, str], package: str, base: type[T], key: str) -> type[T]:
    """Returns the class of a name: `table` has ours as module:Class of `package`; with a colon it is the user's own, a subclass of `base`.

    `key` is the recipe's. Raises InputError for a class of the user's own that cannot be imported, or lacks what `base` leaves abstract.
    """
    if ":" not in name:
        module, _, attribute = table[name].partition(":")
        ours: type[T] = getattr(import_module(f"{package}.{module}"), attribute)
        return ours
    found = imported(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{key} {name} is not a subclass of {base.__name__} of {package}; derive your class from that one")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise InputError(f"{key} {name} does not define {', '.join(missing)}, which {base.__name__} of {package} leaves to it; define it")
    return found


def own_classes(spec: Train) -> dict[str, str]:
    """Returns the user's own classes of a recipe: `package.module:Class` by the recipe's key."""
    named = {"train.objective": spec.objective, "train.sparse.method": spec.sparse.method}
    return {key: name for key, name in named.items() if ":" in name}


def own_code(spec: Train) -> str:
    """Returns a hash of the source files of the user's own classes, which must have been imported; empty where there are none."""
    files = [(path, root) for name in own_classes(spec).values() for path, root in sources(name).items()]
    parts = [path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() for path, root in sorted(set(files))]
    return sha256_bytes(b"\0".join(parts)) if parts else ""


def sources(name: str) -> dict[Path, Path]:
    """Returns the source files of `package.module:Class`, imported before, and of what they import beside them, each with its root.

    The root is the folder in which the package, or the module without one, was found. What lies outside of it (libraries) is left out.
    """
    module = name.partition(":")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return {}
    start = Path(file).resolve()
    root = start.parents[module.count(".") + (start.name == "__init__.py")]
    top = module.partition(".")[0] if any(part in INSTALLED for part in root.parts) else ""
    found: dict[Path, Path] = {}
    todo = [start]
    while todo:
        path = todo.pop()
        found[path] = root
        for other in _imports(path, root):
            if other not in found and other not in todo and (not top or other.relative_to(root).parts[0].removesuffix(".py") == top):
                todo.append(other)
    return found


def _imports(path: Path, root: Path) -> Iterator[Path]:
    """Yields the files under `root` that a source file imports, in functions too; vsparse itself is left out."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError, RecursionError):  # compiled, or never imported by what runs
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [(root, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else root
            names = [(base, ".".join(filter(None, (node.module, tail)))) for tail in ("", *(alias.name for alias in node.names))]
        else:
            continue
        for folder, dotted in names:
            parts = dotted.split(".") if dotted else []
            if folder == root and parts and parts[0] in ("vsparse", "vsparse_check"):
                continue
            # Importing a.b executes a as well.
            for length in range(1, len(parts) + 1):
                place = folder.joinpath(*parts[:length])
                for candidate in (place.with_name(place.name + ".py"), place / "__init__.py"):
                    if candidate.is_file() and candidate.resolve().is_relative_to(root):
                        yield candidate.resolve()


@contextmanager
def errors_of_own_classes(spec: Train) -> Iterator[None]:
    """Turns what the code of a user's own class raises in the block into an InputError of one sentence; other errors pass."""
    try:
        yield
    except (VsparseError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's class may raise anything
        lines = [os.path.realpath(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        for key, name in own_classes(spec).items():
            if any(str(path) in lines for path in sources(name)):
                raise InputError(f"{key} {name} failed: {described(error)}; mend it, then run the same command again") from error
        raise
