"""No public type has the name of another one: a reader who looks for a class or a type alias finds one."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "toolchain"


def types_of(text: str) -> set[str]:
    """Returns the names of the public classes and type aliases of a module."""
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp | ast.Name | ast.Attribute):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            # Constants are written in capitals, aliases of types are not.
            found |= {name for name in names if name[0].isupper() and not name.isupper()}
    return {name for name in found if not name.startswith("_")}


def test_types_are_found() -> None:
    text = "class A: ...\nclass _B: ...\nCase = dict[str, int]\nOr = int | str\nMOST = A\nx = A\nmade = A()\n"
    assert types_of(text) == {"A", "Case", "Or"}


def test_no_public_type_has_the_name_of_another_one() -> None:
    places = defaultdict(list)
    for path in sorted(path for package in ("vsparse", "vsparse_check") for path in (SOURCE / package).rglob("*.py")):
        for name in types_of(path.read_text(encoding="utf-8")):
            places[name].append(path.relative_to(SOURCE).as_posix())
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
