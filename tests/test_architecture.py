"""Arrows point down: docs/architecture.md lists every module, and nobody imports from a row above their own."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from vsparse.pipeline.plan import CODE

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "toolchain"
PAGE = ROOT / "docs" / "architecture.md"
# The package itself offers api.py's functions, and its __main__ starts the command line.
ENTRANCES = {"vsparse", "vsparse.__main__"}

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documents are not beside the tests")


def rows() -> list[list[str]]:
    """Returns the rows of the table as lists of dotted names."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            names = re.findall(r"`([a-z_/.]+)`", line.split("|")[1])
            found.append(["vsparse." + name.rstrip("/").removesuffix(".py").replace("/", ".") for name in names])
    return found


def modules(package: str) -> dict[str, Path]:
    """Returns the files of a package by dotted name."""
    found = {}
    for path in sorted((SOURCE / package).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Returns the dotted names that a file imports anywhere, inside functions too; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which hides from where"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def row_of(name: str, table: list[list[str]]) -> int | None:
    """Returns the number of the row that lists a module or the nearest package above it."""
    while name:
        for number, row in enumerate(table):
            if name in row:
                return number
        name = name.rpartition(".")[0]
    return None


def test_every_module_has_a_row_and_every_row_a_module() -> None:
    table, known = rows(), modules("vsparse")
    assert len(table) > 15
    listed = [name for row in table for name in row]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(known)
    packages = {"vsparse.stages"}  # holds no code of its own
    assert [name for name in known if row_of(name, table) is None and name not in ENTRANCES | packages] == []


def test_imports_point_down() -> None:
    table, known = rows(), modules("vsparse")
    wrong = []
    for name, path in known.items():
        own = row_of(name, table)
        if own is None:
            continue
        for other in imports(path):
            row = row_of(other, table) if other in known else None
            if row is not None and row < own:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_the_checker_stands_alone() -> None:
    for name, path in modules("vsparse_check").items():
        tops = {other.split(".")[0] for other in imports(path)}
        allowed = {"numpy", "onnx", "vsparse_check", *sys.stdlib_module_names}
        assert tops <= allowed, f"{name} imports {sorted(tops - allowed)}"


@pytest.mark.parametrize("stage", sorted(CODE))
def test_the_key_of_a_stage_covers_the_packages_it_computes_with(stage: str) -> None:
    known = modules("vsparse")
    reached, todo = set(), [f"vsparse.stages.{stage}.task"]
    while todo:
        name = todo.pop()
        reached.add(name)
        # The root offers every command, and so leads everywhere; the packages of other stages are handed over as files.
        found = {other for other in imports(known[name]) if other in known and other != "vsparse"}
        found = {other for other in found if not other.startswith("vsparse.stages.") or other.startswith(f"vsparse.stages.{stage}")}
        todo += sorted(found - reached - set(todo))
    computing = {"bounds", "reading", "search", "graph", "contract", "second_opinion"}
    if stage == "train":
        computing.remove("contract")  # training bounds are plain arithmetic, without a Rounding
    needed = {name.split(".")[1] for name in reached} & computing
    assert needed <= set(CODE[stage]), f"{stage} computes with {sorted(needed - set(CODE[stage]))}, which its key leaves out"
