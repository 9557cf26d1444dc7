"""The part of JSON Schema that docs/schemas uses, checked: type, enum, properties, required, items, additionalProperties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
KNOWN = {"$schema", "title", "description", "type", "enum", "properties", "required", "items", "additionalProperties"}
TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def schema_of(command: str) -> dict[str, Any]:
    """Returns the schema of a command's JSON."""
    return dict(json.loads((SCHEMAS / f"{command}.schema.json").read_text(encoding="utf-8")))


def problems(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """Returns what of a value breaks a schema, each with its place."""
    assert not set(schema) - KNOWN, f"{place}: the check does not know {set(schema) - KNOWN}"
    found = []
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(isinstance(value, TYPES[kind]) and not (isinstance(value, bool) and kind != "boolean") for kind in kinds):
        return [f"{place or 'the document'} is {value!r:.40}, not {' or '.join(kinds)}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place} is {value!r:.40}, not one of {schema['enum']}")
    if isinstance(value, dict):
        found += [f"{place}.{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, one in value.items():
            if key in schema.get("properties", {}):
                found += problems(one, schema["properties"][key], f"{place}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{place}.{key} is not described")
    if isinstance(value, list) and "items" in schema:
        found += [text for index, one in enumerate(value) for text in problems(one, schema["items"], f"{place}[{index}]")]
    return found
