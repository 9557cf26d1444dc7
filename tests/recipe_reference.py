"""The tables of docs/reference-recipe.md, from the schema; `python tests/recipe_reference.py` writes them anew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vsparse.recipe import Recipe
from vsparse.recipe_train import NameOrClass

REFERENCE = Path(__file__).parent.parent / "docs" / "reference-recipe.md"
HEAD = "| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n"
SECTION = re.compile(r"^## (?:`\[(.+?)\]`|Top level)\n(.*?)(?=^## |\Z)", re.M | re.S)
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def tables(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the name and the table of every section, the top level's first, under the name ""."""
    rows, inner = "", []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner.append((field.annotation, f"{prefix}.{key}".lstrip(".")))
        else:
            rows += f"| `{key}` | {_default(field)} | {_allowed(field)} | {_linked(field.description or '')} |\n"
    yield prefix, HEAD + rows
    for annotation, name in inner:
        yield from tables(annotation, name)


def _default(field: FieldInfo) -> str:
    value = field.default
    return "required" if value is PydanticUndefined else f"`{json.dumps(value, ensure_ascii=False)}`"


def _allowed(field: FieldInfo) -> str:
    for rule in field.metadata:
        if isinstance(rule, AfterValidator) and isinstance(rule.func, NameOrClass):
            return f"one of {', '.join(f'`{name}`' for name in rule.func.names)}, or `package.module:Class`"
    choices = list(_choices(field.annotation))
    if choices:
        listed = ", ".join(f"`{choice}`" for choice in choices)
        return f"one of {listed}" if get_origin(field.annotation) is Literal else listed
    bounds = [f"{sign} {_number(getattr(rule, name))}" for rule in field.metadata for name, sign in SIGNS.items() if hasattr(rule, name)]
    return ", ".join(bounds)


def _choices(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is tuple:
        yield from _choices(get_args(annotation)[0])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _linked(text: str) -> str:
    """Returns the text with names of neighbouring documents as links."""
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text)


def main() -> None:
    """Puts the tables into the reference; a section it lacks is an error, as its text is for a person to write."""
    text = REFERENCE.read_text()
    for name, table in tables():
        heading = f"## `[{name}]`\n" if name else "## Top level\n"
        start = text.index(heading) + len(heading)
        before, rows, after = re.split(r"(^(?:\|.*\n)+)", text[start:], maxsplit=1, flags=re.M)
        assert "\n## " not in before, f"[{name}] has no table"
        text = text[:start] + before + table + after
        del rows
    REFERENCE.write_text(text)


if __name__ == "__main__":
    main()
