"""JSON schemas of recipes and targets, by which editors complete keys, check types and show descriptions (`vsparse schema`)."""

from __future__ import annotations

from typing import Any, Literal, get_args

from vsparse.recipe import Recipe
from vsparse.target import Target

DocumentKind = Literal["recipe", "target"]
KINDS: tuple[DocumentKind, ...] = get_args(DocumentKind)
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def editor_schema(kind: DocumentKind) -> dict[str, Any]:
    """Returns the JSON schema of a kind of document. `name` may be left out: it is then the file's.

    What a schema cannot say (keys that exclude each other, whole documents) is refused when the document is read.
    """
    model = Recipe if kind == "recipe" else Target
    schema = model.model_json_schema(mode="validation")
    sections = schema.get("$defs", {})
    for one in (schema, *sections.values()):
        for part in one.get("properties", {}).values():
            if "description" not in part:
                part["description"] = sections[part["$ref"].rpartition("/")[2]]["description"]
    schema["required"] = [key for key in schema.get("required", []) if key != "name"]
    if not schema["required"]:
        del schema["required"]
    return {"$schema": DIALECT, **schema, "title": f"vsparse {kind}"}


def is_ours(content: Any) -> bool:
    """Whether a JSON document is such a schema, of this or of another version."""
    return isinstance(content, dict) and content.get("title") in {f"vsparse {kind}" for kind in KINDS}
