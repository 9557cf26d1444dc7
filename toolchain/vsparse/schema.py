"""TOML documents checked against pydantic models, with errors that name the file, the key and the nearest valid key."""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from vsparse.errors import InputError, nearest
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
ExactNumber = Annotated[str, BeforeValidator(_fraction_text), AfterValidator(_check_fraction)]

M = TypeVar("M", bound=Section)


def parse_toml(path: Path, what: str) -> dict[str, Any]:
    """Reads a TOML file; raises InputError for one that is absent, too large, not UTF-8 or malformed."""
    try:
        return tomllib.loads(read_bytes(path, what, MAX_TOML_BYTES).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits raises a plain ValueError
        raise InputError(f"{what} {path} is not valid TOML: {error}") from error


def known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Returns the keys allowed in the section at `location`, following nested sections."""
    for part in location:
        annotation = model.model_fields[part].annotation if isinstance(part, str) and part in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        else:
            break
    return [field.alias or name for name, field in model.model_fields.items()]


def validate(model: type[M], content: dict[str, Any], source: str, place: str = "", strict: bool = False) -> M:
    """Checks a parsed document; raises InputError that names the source, the key, the reason and the nearest valid key.

    `place` stands before the key. `strict`: no value is turned into another type than its own, and only aliases are keys.
    """
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
