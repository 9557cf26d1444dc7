"""Strict reading of what an artifact holds: bounded, finite, of the expected types, and never executing anything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import Zip
from vsparse.data.npz import read_array
from vsparse.errors import InputError
from vsparse.files import read_bytes

MAX_JSON_BYTES = 256 * 2**20
MAX_ARRAY_BYTES = 2**30
REBUILD = "restore it, or build the artifact again"


def damaged(path: Path | str, reason: str) -> InputError:
    """Returns the error for a part of an artifact that cannot be what vsparse wrote."""
    return InputError(f"{path} is damaged: {reason}; {REBUILD}")


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON allows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def load_json(path: Path) -> Any:
    """Reads a JSON file in which every number is finite; InputError for NaN, infinities, bad syntax, bad UTF-8 and absurd size."""
    data = read_bytes(path, "artifact file", MAX_JSON_BYTES)
    try:
        return json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not valid JSON ({error})") from error


def load_object(path: Path) -> Part | None:
    """Reads a JSON object, or returns None where the file is absent; InputError where it is anything else."""
    if not path.exists():
        return None
    return Part(load_json(path), path, "")


class Part:
    """A JSON object with the path of its file and its place in it, so that every error names both.

    Each reader takes the names a value may have and returns the first that is there and not null.
    """

    def __init__(self, content: Any, path: Path, place: str) -> None:
        if not isinstance(content, Mapping):
            raise damaged(path, f"{place or 'the file'} should be an object")
        self.content: Mapping[str, Any] = content
        self.path = path
        self.place = place

    def wrong(self, name: str, wanted: str) -> InputError:
        """Returns the error for a value of the wrong kind."""
        return damaged(self.path, f"{self.place + '.' if self.place else ''}{name} should be {wanted}")

    def find(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """Returns the first of `names` that has a value, with it; (first name, None) where none has."""
        for name in names:
            if self.content.get(name) is not None:
                return name, self.content[name]
        return names[0], None

    def number(self, *names: str) -> float | None:
        """Returns a finite number (a bool is none), or None where absent."""
        name, value = self.find(names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
            raise self.wrong(name, "a number")
        return float(value)

    def share(self, *names: str) -> float | None:
        """Returns a number from 0 to 1, or None where absent."""
        value = self.number(*names)
        if value is not None and not 0 <= value <= 1:
            raise self.wrong(self.find(names)[0], "a share from 0 to 1")
        return value

    def integer(self, *names: str) -> int | None:
        """Returns an integer, or None where absent."""
        name, value = self.find(names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**63:
            raise self.wrong(name, "an integer")
        return value

    def count(self, *names: str) -> int | None:
        """Returns an integer of at least 0, or None where absent."""
        value = self.integer(*names)
        if value is not None and value < 0:
            raise self.wrong(self.find(names)[0], "an integer of at least 0")
        return value

    def flag(self, *names: str) -> bool | None:
        """Returns a bool, or None where absent."""
        name, value = self.find(names)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, *names: str, default: str = "") -> str:
        """Returns a string (numbers are written out), or the default where absent."""
        name, value = self.find(names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.wrong(name, "text")
        return str(value)

    def part(self, *names: str) -> Part | None:
        """Returns an object, or None where absent."""
        name, value = self.find(names)
        return None if value is None else Part(value, self.path, f"{self.place + '.' if self.place else ''}{name}")

    def items(self, *names: str) -> list[Any]:
        """Returns a list, empty where absent."""
        name, value = self.find(names)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def parts(self, *names: str) -> list[Part]:
        """Returns a list of objects, empty where absent."""
        name = self.find(names)[0]
        return [
            Part(value, self.path, f"{self.place + '.' if self.place else ''}{name}[{i}]") for i, value in enumerate(self.items(*names))
        ]

    def numbers(self, *names: str) -> list[float]:
        """Returns a list of finite numbers, empty where absent."""
        name = self.find(names)[0]
        values = self.items(*names)
        if any(isinstance(v, bool) or not isinstance(v, int | float) or abs(v) > 1e300 for v in values):
            raise self.wrong(name, "a list of numbers")
        return [float(v) for v in values]


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the arrays of an .npz file, each of at most 1 GiB, whose size is checked before memory is taken.

    Raises InputError for anything but a zip of plain arrays of finite numbers; no pickled objects are ever read.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with Zip(path) as archive:
        for member in archive.members:
            name = member.removesuffix(".npy")
            if name == member:
                raise damaged(path, f"it holds {member}, which is no array")
            array = read_array(archive, name, MAX_ARRAY_BYTES)
            if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
                raise damaged(path, f"{member} has values that are no finite numbers")
            arrays[name] = array
    return arrays
