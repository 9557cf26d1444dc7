"""The checker is read by assessors: narrow lines, one entry for each kind of operator, names of its own, results that are returned."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vsparse_check
from vsparse_check.op import ElementMove, Op
from vsparse_check.operators import FAMILIES, ONNX, RULES
from vsparse_check.operators.moves import move_backward, moved
from vsparse_check.rules import BackwardContext, OperatorRules

FOLDER = Path(vsparse_check.__file__).parent
ROOT = FOLDER.parents[1]
GUIDE = ROOT / "docs" / "checker.md"
SOURCES = sorted(FOLDER.rglob("*.py"))
TREES = {path.relative_to(FOLDER).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
# What is counted or noted as it goes along: methods of these parameters may be called for what they do.
NESTED = {"kept", "unique", "constant", "chord", "slope"}  # functions inside of functions
CHANGERS = {"append", "extend", "add", "update", "setdefault", "pop", "insert", "clear", "remove", "sort", "fill"}


def names_of_types(folder: Path) -> dict[str, list[str]]:
    """Returns the classes and type aliases at module level, and the files that define them."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                targets = [node.target.id]
            for name in targets:
                if name[0].isupper() and not name.isupper():
                    found[name].append(path.relative_to(folder).as_posix())
    return dict(found)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_lines_have_at_most_100_columns_and_files_at_most_400_lines(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines), default=0) <= 100
    assert len(lines) <= 400


def test_no_type_has_the_name_of_another_one() -> None:
    own, theirs = names_of_types(FOLDER), names_of_types(FOLDER.parent / "vsparse")
    assert [name for name, files in own.items() if len(files) > 1] == []
    assert sorted(own.keys() & theirs.keys()) == []


@pytest.mark.parametrize("kind", RULES)
def test_every_kind_has_a_function_of_its_family_for_every_step(kind: str) -> None:
    assert sum(kind in family.RULES for family in FAMILIES) == 1
    rules = RULES[kind]
    for field in ("interval", "backward", "error", "execute"):
        function = getattr(rules, field)
        assert function.__module__.startswith("vsparse_check.operators."), field
        assert function.__doc__
    assert rules.unstable is not None or rules.linear or kind in ("add", "sub", "concat")
    if rules.elementwise_linear:
        assert rules.linear


def test_every_operator_is_read_in_one_place() -> None:
    assert sum(len(family.ONNX) for family in FAMILIES) == len(ONNX)
    for name, rule in ONNX.items():
        assert rule.read.__doc__, name
        assert rule.inputs >= 1


@pytest.mark.parametrize("name", TREES)
def test_functions_say_what_they_return_and_return_it(name: str) -> None:
    """No out-parameters: what is handed to a function is not written into, but for self and what counts (budgets)."""
    for function in functions(TREES[name]):
        if not function.name.startswith("_") and function.name not in NESTED:
            assert ast.get_docstring(function), f"{name}: {function.name} has no docstring"
        given = {one.arg for one in [*function.args.args, *function.args.kwonlyargs]} - {"self", "cls"}
        rebound = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
            for target in targets:
                while isinstance(target, (ast.Subscript, ast.Attribute)):
                    target = target.value
                    if isinstance(target, ast.Name):
                        assert target.id not in given - rebound, f"{name}: {function.name} writes into {target.id}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGERS:
                of = node.func.value
                assert not (isinstance(of, ast.Name) and of.id in given - rebound), f"{name}: {function.name} changes {ast.unparse(of)}"


@pytest.mark.parametrize("name", TREES)
def test_no_four_things_are_unpacked_on_a_line(name: str) -> None:
    """But for the four pads of a window, which are one thing."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, (ast.Tuple, ast.List)):
                    names = [one.id for one in target.elts if isinstance(one, ast.Name)]
                    assert len(target.elts) < 4 or names == ["top", "left", "bottom", "right"], f"{name}: {ast.unparse(target)}"


def test_a_move_that_repeats_elements_adds_their_coefficients_up() -> None:
    """As of Gather: the backward rule is the transpose of what is executed."""
    rng = np.random.default_rng(0)
    element = np.array([2, 0, 2, 3, 2])
    op = Op("move", "y", ("x",), (5,), bias=np.zeros(5), constants=(0.0,), moves=(ElementMove(np.arange(5), element, True),))
    x, a = rng.integers(-8, 9, (3, 4)).astype(float), rng.integers(-8, 9, (6, 5)).astype(float)
    context = BackwardContext({"x": (x, x)}, {})
    context.boxes["x"] = type("Box", (), {"lower": x})
    (row,) = move_backward(op, a, context).rows
    np.testing.assert_array_equal(row @ x.T, a @ moved(op, [x], op.bias).T)


def named_in_the_guide() -> list[str]:
    spans = re.findall(r"`([^`\n]+)`", GUIDE.read_text(encoding="utf-8"))
    return [span.removeprefix("vsparse_check/") for span in spans]


@pytest.mark.skipif(not GUIDE.is_file(), reason="the documents are not beside the package")
def test_every_file_and_function_that_the_guide_names_exists() -> None:
    files = {path.relative_to(FOLDER).as_posix() for path in SOURCES}
    defined = defaultdict(set)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined[node.name].add(name)
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{one.name}": {name} for one in node.body if isinstance(one, ast.FunctionDef)}
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        defined[target.id].add(name)
    count, missing = 0, []
    for span in named_in_the_guide():
        if re.fullmatch(r"[\w/]+\.py", span) and "/" in span and span.startswith(("tests/", "benchmarks/")):
            missing += [] if (ROOT / span).is_file() else [span]
        elif re.fullmatch(r"[\w/]+\.py", span):
            count += 1
            missing += [] if span in files else [span]
        elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)?(\(\))?", span) and ("_" in span or span[0].isupper() or "." in span):
            if re.fullmatch(r"[a-z0-9_-]+\.(json|npz|toml|md|c|h|html)", span):
                continue
            count += 1
            missing += [] if span.removesuffix("()") in defined else [span]
    assert missing == []
    assert count > 80


@pytest.mark.skipif(not GUIDE.is_file(), reason="the documents are not beside the package")
def test_the_guide_tells_how_much_there_is_to_read() -> None:
    rows = re.findall(r"^\| (`[^|]*\.py`) \| [^|]+ \| (\d+) \|$", GUIDE.read_text(encoding="utf-8"), flags=re.M)
    assert len(rows) > 8
    for files, stated in rows:
        paths = [FOLDER / name for name in re.findall(r"`(?:vsparse_check/)?([^`]+)`", files)]
        found = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        assert abs(found - int(stated)) <= 20 + 0.1 * found, (files, found)


@pytest.mark.skipif(not GUIDE.is_file(), reason="the documents are not beside the package")
def test_the_guide_leads_through_every_file_and_every_rule() -> None:
    named = set(named_in_the_guide())
    assert [path for path in TREES if path not in named and path not in ("__init__.py",)] == []
    rules = {function for one in RULES.values() for function in one if callable(function) and inspect.isfunction(function)}
    assert sorted(function.__name__ for function in rules if function.__name__ not in named) == []
    assert set(OperatorRules._fields) <= named
