"""The registry of damaged inputs: a case makes one in a folder and returns the command that meets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Case = Callable[[Path, Path], list[str]]
CASES: dict[str, tuple[int, str, Case]] = {}


def case(code: int, says: str) -> Callable[[Case], Case]:
    """Registers a damaged input with the exit code it must give and a word its sentence must hold."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (code, says, function)
        return function

    return register
