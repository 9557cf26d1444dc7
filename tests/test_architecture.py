"""Arrows point down: docs/architecture.md lists every module, nobody imports from a row above their own, and no imports run in a circle."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vsparse.pipeline.plan import CODE

ROOT = Path(__file__).resolve().parent.parent
DRAWING = ROOT / "docs" / "draw_architecture.py"

pytestmark = pytest.mark.skipif(not DRAWING.exists(), reason="the documents are not beside the tests")


def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", DRAWING)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def house() -> ModuleType:
    return drawing()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of modules that reach one another: what is left after modules without arrows in or out are taken away."""
    left = {name: set(others) for name, others in graph.items()}
    while True:
        entered = set().union(*left.values()) if left else set()
        ends = {name for name, others in left.items() if not others or name not in entered}
        if not ends:
            break
        left = {name: others - ends for name, others in left.items() if name not in ends}
    return [[name, *sorted(others)] for name, others in sorted(left.items())]


def test_every_module_has_a_row_and_every_row_a_module(house: ModuleType) -> None:
    table, known = house.rows(house.PAGE.read_text(encoding="utf-8")), house.modules("vsparse")
    assert len(table) > 15
    listed = [name for row in table for name in row]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(known)
    assert [name for name in known if house.row_of(name, table) is None and name not in house.ENTRANCES] == []


def test_imports_point_down(house: ModuleType) -> None:
    found = house.arrows(house.rows(house.PAGE.read_text(encoding="utf-8")))
    assert [(row, other) for row, others in found.items() for other in others if other < row] == []


def test_no_imports_run_in_a_circle(house: ModuleType) -> None:
    """Inside packages too; what a function imports when it is called counts."""
    known = house.modules("vsparse", "vsparse_check")
    # The root offers the functions of api.py, which lead everywhere; that nobody below imports it is the next test's.
    graph = {name: house.imports(path, known) - {name} for name, path in known.items() if name not in house.ENTRANCES}
    assert circles({name: others & set(graph) for name, others in graph.items()}) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"b"}}) == [["b", "c"], ["c", "b"]]


def test_nobody_below_imports_the_root(house: ModuleType) -> None:
    known = house.modules("vsparse")
    # The command line stands above it, and asks it for the version.
    assert [name for name, path in known.items() if "vsparse" in house.imports(path, known)] == ["vsparse.cli"]


def test_no_module_is_imported_by_a_name_made_at_run_time(house: ModuleType) -> None:
    """A lazy import of our own by a string would hide an arrow."""
    for name, path in house.modules("vsparse").items():
        assert 'import_module("vsparse' not in path.read_text(encoding="utf-8"), name


def test_the_picture_is_true(house: ModuleType) -> None:
    text = house.PAGE.read_text(encoding="utf-8")
    assert house.drawn(text) == text, "run python docs/draw_architecture.py"


def test_the_checker_stands_alone(house: ModuleType) -> None:
    for name, path in house.modules("vsparse_check").items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        tops = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        tops |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        allowed = {"numpy", "onnx", "vsparse_check", *sys.stdlib_module_names}
        assert tops <= allowed, f"{name} imports {sorted(tops - allowed)}"


@pytest.mark.parametrize("stage", sorted(CODE))
def test_the_key_of_a_stage_covers_the_packages_it_computes_with(house: ModuleType, stage: str) -> None:
    known = house.modules("vsparse")
    reached, todo = set(), [f"vsparse.stages.{stage}.task"]
    while todo:
        name = todo.pop()
        reached.add(name)
        # The packages of other stages are handed over as files.
        found = house.imports(known[name], known) - house.ENTRANCES
        found = {other for other in found if not other.startswith("vsparse.stages.") or other.startswith(f"vsparse.stages.{stage}")}
        todo += sorted(found - reached - set(todo))
    computing = {"bounds", "reading", "search", "graph", "contract", "second_opinion"}
    if stage == "train":
        computing.remove("contract")  # training bounds are plain arithmetic, without a Rounding
    needed = {name.split(".")[1] for name in reached} & computing
    assert needed <= set(CODE[stage]), f"{stage} computes with {sorted(needed - set(CODE[stage]))}, which its key leaves out"
