"""TOML documents checked against pydantic models, with errors that name the file, the key and the nearest valid key."""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from vsparse.errors import InputError, nearest
from vsparse.file_kind import no_recipe
from vsparse.files import read_bytes

MAX_TOML_BYTES = 2**20
MAX_EXPONENT_DIGITS = 3
_EXPONENT = re.compile(r"[eE][+-]?([\d_]*)")


class Section(BaseModel):
    """A table of a TOML document: immutable, unknown keys are errors, numbers must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def parse_fraction(text: str) -> Fraction:
    """Returns the exact value of `0.1` or `8/255`; ValueError for anything else, for a negative one and for absurd sizes."""
    if len(text) > 40:
        raise ValueError("a number of at most 40 characters, such as 0.1 or 8/255, is wanted")
    plain = text.replace(" ", "")
    exponent = _EXPONENT.search(plain)
    if exponent is not None and len(exponent[1]) > MAX_EXPONENT_DIGITS:  # written out, such a number would fill the memory
        raise ValueError(f'"{text}" has an exponent of more than {MAX_EXPONENT_DIGITS} digits; write a number such as 0.1 or 8/255')
    try:
        value = Fraction(plain)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'"{text}" is not a number such as 0.1 or 8/255') from None
    if value < 0 or value > 10**6 or (value and value < Fraction(1, 10**12)):
        raise ValueError(f'"{text}" is outside the range from 0 to a million')
    return value


def _fraction_text(value: Any) -> Any:
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _check_fraction(text: str) -> str:
    parse_fraction(text)
    return text


# An exact number kept as its text, so that 8/255 and 0.1 mean themselves and not their nearest doubles.
ExactNumber = Annotated[
    str, BeforeValidator(_fraction_text), AfterValidator(_check_fraction), WithJsonSchema({"type": ["string", "number"]})
]

M = TypeVar("M", bound=Section)


def parse_toml(path: Path, what: str) -> dict[str, Any]:
    """Reads a TOML file; raises InputError for one that is absent, too large, not UTF-8 or malformed."""
    try:
        return tomllib.loads(read_bytes(path, what, MAX_TOML_BYTES).decode())
    except UnicodeDecodeError as error:
        other = no_recipe(path) or f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
        raise InputError(f"{what} {path} {other}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits raises a plain ValueError
        raise InputError(f"{what} {path} {no_recipe(path) or f'is not valid TOML: {error}'}") from error


def parse_document(text: str) -> dict[str, Any]:
    """Returns TOML that is text already, of a document that was read before; nothing for what is no TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


def known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Returns the keys allowed in the section at `location`, following nested sections."""
    for part in location:
        annotation = model.model_fields[part].annotation if isinstance(part, str) and part in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        else:
            break
    return [field.alias or name for name, field in model.model_fields.items()]


def boolean_for_number(annotation: Any, value: Any) -> tuple[str, ...] | None:
    """Returns the keys that lead to a true or false where the type of a value wants numbers; None where there is none.

    To Python true is 1, so that pydantic reads `bytes = true` as a limit of one byte.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return boolean_for_number(inner[0], value)
    if isinstance(value, bool):
        kinds = [type(one) if origin is Literal else one for one in inner] if origin in (Literal, Union, UnionType) else [annotation]
        return () if bool not in kinds and {int, float} & set(kinds) else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, dict):
        pairs = [(name, field.annotation, value[name]) for name, field in annotation.model_fields.items() if name in value]
    elif origin is tuple and isinstance(value, list | tuple):
        pairs = [(str(place), inner[0], item) for place, item in enumerate(value)]
    elif origin is dict and isinstance(value, dict):
        pairs = [(str(name), inner[1], item) for name, item in value.items()]
    else:
        return None
    for name, kind, item in pairs:
        found = boolean_for_number(kind, item)
        if found is not None:
            return (name, *found)
    return None


def validate(model: type[M], content: dict[str, Any], source: str, place: str = "", strict: bool = False) -> M:
    """Checks a parsed document; raises InputError that names the source, the key, the reason and the nearest valid key.

    `place` stands before the key. `strict`: no value is turned into another type than its own, and only aliases are keys. A true or
    false is never a number.
    """
    boolean = None if strict else boolean_for_number(model, content)
    if boolean is not None:
        raise InputError(
            f"{source}: {'.'.join(([place] if place else []) + list(boolean))}: a number is wanted, and true and false are none"
        )
    try:
        return model.model_validate(content, strict=strict or None, by_alias=True, by_name=not strict)
    except ValidationError as error:
        problem = error.errors()[0]
        location = problem["loc"]
        key = ".".join(([place] if place else []) + [str(part) for part in location])
        if problem["type"] == "extra_forbidden":
            hint = nearest(str(location[-1]), known_keys(model, location[:-1]))
            raise InputError(f"{source}: {key} is not a known key{hint}") from error
        reason = problem["msg"].removeprefix("Value error, ")
        where = f"{key}: " if key else ""
        got = problem.get("input")
        shown = f" (it is {got!r:.60})" if isinstance(got, str | int | float | bool) else ""
        raise InputError(f"{source}: {where}{reason[0].lower()}{reason[1:]}{shown}") from error
