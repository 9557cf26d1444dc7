"""The JSON documents of an artifact: typed models, one function that writes them and one that reads them back without trust."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field

from vsparse.errors import InputError
from vsparse.files import read_bytes, write_json
from vsparse.schema import Section, validate

MAX_BYTES = 256 * 2**20
SHA256 = r"^[0-9a-f]{64}$"
REBUILD = "restore it, or build the artifact again"

Count = Annotated[int, Field(ge=0, le=2**63)]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
Scalar = bool | int | float | str | None
# How and where something was measured, by name: values of any kind, as runtimes and machines differ in what they tell.
Conditions = dict[str, Scalar | tuple[Scalar, ...]]


class Part(Section):
    """An object of a document: immutable, no unknown keys, finite numbers, and no value of another type than the one that is stated.

    A field whose JSON key is older than its name has the key as alias; both are known to Python, only the key to files.
    """

    model_config = ConfigDict(strict=True, serialize_by_alias=True, validate_by_name=True)


class Document(Part):
    """A JSON file of an artifact."""

    schema_version: Literal[1] = 1


S = TypeVar("S", bound=Section)


def damaged(path: Path | str, reason: str) -> InputError:
    """Returns the error for a file of an artifact that cannot be what vsparse wrote."""
    return InputError(f"{path} is damaged: {reason}; {REBUILD}")


def write_document(path: Path, document: Section) -> None:
    """Writes a document as indented JSON, atomically; ValueError for NaN and infinities."""
    write_json(path, document.model_dump(mode="json"))


def write_list(path: Path, parts: Sequence[Part]) -> None:
    """Writes objects as one JSON list, as `write_document` writes one."""
    write_json(path, [part.model_dump(mode="json") for part in parts])


def read_document(model: type[S], path: Path) -> S:
    """Reads a JSON file as `model`; raises InputError that names the file, the key and the reason where it is absent or damaged."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise damaged(path, "it should be an object")
    return parse(model, content, path)


def read_if_there(model: type[S], path: Path) -> S | None:
    """Reads a JSON file as `model`, or returns None where there is none; InputError where it is damaged."""
    return read_document(model, path) if path.exists() else None


def read_list(model: type[S], path: Path) -> tuple[S, ...]:
    """Reads a JSON file that is a list of objects; InputError where it is absent or damaged."""
    content = load_json(path)
    if not isinstance(content, list):
        raise damaged(path, "it should be a list")
    return tuple(parse(model, item, path, f"[{place}]") for place, item in enumerate(content))


def parse(model: type[S], content: Any, path: Path, place: str = "") -> S:
    """Returns a value of a JSON file as `model`, never as another type than is stated; InputError that names file, key and reason."""
    try:
        return validate(model, _frozen(content), f"{path} is damaged", place, strict=True)
    except InputError as error:
        raise InputError(f"{error}; {REBUILD}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def _frozen(value: Any) -> Any:
    """Returns a JSON value with its lists as tuples, which is what the models hold."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def load_json(path: Path) -> Any:
    """Reads a JSON file in which every number is finite; InputError for NaN, infinities, bad syntax, bad UTF-8 and absurd size."""
    data = read_bytes(path, "artifact file", MAX_BYTES)
    try:
        content = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(data):  # half of a pair is no character, and cannot be written
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return content
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not valid JSON ({error})") from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON allows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
