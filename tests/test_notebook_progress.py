"""Bars in a notebook: there for a kernel of IPython, in one place for a cell, escaped; and nothing elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vsparse import notebook_progress
from vsparse.notebook_progress import in_notebook
from vsparse.progress import BUILD, Event


class FakeDisplay:
    """IPython.display as far as it is used: what was shown, in which place."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    HTML = staticmethod(str)

    def display(self, made: str, display_id: bool) -> Any:
        assert display_id
        place = [made]
        self.shown.append(place)
        return SimpleNamespace(update=place.append)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    shell, display = SimpleNamespace(kernel=object(), execution_count=1), FakeDisplay()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))  # type: ignore[arg-type]
    monkeypatch.setattr(notebook_progress, "_bars", {})
    monkeypatch.setattr(notebook_progress, "PAUSE_S", 0.0)
    return SimpleNamespace(shell=shell, display=display)


def test_a_cell_has_one_table_and_the_next_one_its_own(notebook: SimpleNamespace) -> None:
    in_notebook(Event("start", "train", total=4))
    in_notebook(Event("progress", "train", "loss 0.3", done=1, total=4, part=0.5))
    in_notebook(Event("done", "train", seconds=2.0))
    in_notebook(Event("done", "export", reused=True))
    (place,) = notebook.display.shown
    assert '<progress max="4" value="1.500">' in place[1]
    assert "loss 0.3" in place[1]
    assert '<progress max="4" value="4.000">' in place[2]
    assert "done in 2.0 s" in place[2]
    assert "kept from an earlier build" in place[3]
    notebook.shell.execution_count = 2
    in_notebook(Event("start", "verify"))
    assert len(notebook.display.shown) == 2
    assert "train" not in notebook.display.shown[1][0]


def test_what_a_file_says_is_escaped_and_warnings_are_bounded(notebook: SimpleNamespace) -> None:
    in_notebook(Event("progress", "verify", "<script>alert(1)</script>", done=1, total=2))
    for i in range(30):
        in_notebook(Event("warning", "verify", f"<b>warning {i}</b>"))
    shown = notebook.display.shown[0][-1]
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert shown.count("<p>") == notebook_progress.MOST_WARNINGS


def test_records_and_estimates_draw_nothing(notebook: SimpleNamespace) -> None:
    in_notebook(Event("record", "train", data={"loss": 1}))
    in_notebook(Event("progress", BUILD, "about 3 min left"))
    assert notebook.display.shown == []


def test_it_draws_seldom(notebook: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook_progress, "PAUSE_S", 1e9)
    for done in range(100):
        in_notebook(Event("progress", "train", done=done, total=100))
    in_notebook(Event("done", "train"))
    assert [len(place) for place in notebook.display.shown] == [2]


@pytest.mark.parametrize("shell", [None, SimpleNamespace(execution_count=1)], ids=["no shell", "a terminal"])
def test_elsewhere_nothing_is_drawn(notebook: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    in_notebook(Event("warning", "train", "told"))
    monkeypatch.delitem(sys.modules, "IPython")
    in_notebook(Event("start", "train"))
    assert notebook.display.shown == []
