"""A user's own code: imported by the name in a recipe, and its errors told as what they are: type, message, file and line."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch

from vsparse.errors import InputError

_LIBRARIES = tuple(
    str(Path(folder).resolve())
    for folder in (Path(torch.__file__).parent, Path(__file__).parents[1], sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
)


def imported(name: str, key: str) -> Any:
    """Returns what `package.module:attribute` names, the value of a recipe's `key`; the module is imported, which executes its code.

    The current directory is searched first, as with `python -m`. InputError where it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # whatever the user's module raises on import is theirs to read, as one sentence
        raise InputError(f"{key} {name} cannot be imported: {described(error)}; check the spelling and PYTHONPATH") from error
    finally:
        sys.path.remove(here)


def described(error: BaseException) -> str:
    """Returns `RuntimeError: …, at nets.py, line 17`: the first line of the message, and the innermost line of the user's own code.

    Files of torch, of this package and of Python are not the user's; where no other line took part, none is named.
    """
    reason = (str(error).strip().splitlines() or [""])[0]
    text = f"{type(error).__name__}: {reason[:300]}" if reason else type(error).__name__
    where = _where(error)
    return f"{text}, at {where}" if where else text


def _where(error: BaseException) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith("<"):
            continue
        path = os.path.realpath(frame.filename)
        if not path.startswith(_LIBRARIES) or "site-packages" in path.removeprefix(_library(path)):
            return f"{os.path.basename(path)}, line {frame.lineno}"
    return ""


def _library(path: str) -> str:
    return next((library for library in _LIBRARIES if path.startswith(library)), "")
