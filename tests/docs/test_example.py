"""docs/example.ipynb runs from its first cell to its last, and each result has a table to show."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vsparse.notebook import table

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "example.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.exists(), reason="the documents are not beside the tests")


def code_cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    assert all(cell["outputs"] == [] for cell in content["cells"] if cell["cell_type"] == "code")
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def execute(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell and returns the value of its last line, as a notebook does."""
    tree = ast.parse(source)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), "a cell should end with what it shows"
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_its_cells_are_python_that_shows_something() -> None:
    for source in code_cells():
        assert isinstance(ast.parse(source).body[-1], ast.Expr)


def test_tables_are_escaped_and_bounded() -> None:
    shown = table("<b>t</b>", ("<i>",), [("<script>alert(1)</script>\x1b",)] * 300)
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "\x1b" not in shown
    assert shown.count("<tr>") == 201
    assert "100 more rows" in shown


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    drawn: list[str] = []
    display = SimpleNamespace(HTML=str, display=lambda made, display_id: drawn.append(made) or SimpleNamespace(update=drawn.append))
    shell = SimpleNamespace(kernel=object(), execution_count=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))  # type: ignore[arg-type]
    names: dict[str, Any] = {}
    shown = [execute(source, names) for source in code_cells()]
    assert all("<" in value._repr_html_() for value in shown[:-1])
    assert names["first"].passed
    assert [one.status for one in names["first"].requirements] == ["met"]
    assert names["checked"].passed, names["checked"].problem
    assert "report.html" in shown[-1]
    assert all(f'<th scope="row">{stage}' in drawn[-1] for stage in ("train", "export", "verify", "profile"))
