"""Prose of the documents is wrapped, and the README is read in two minutes, CONTRIBUTING in five."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prose import COLUMNS, ROOT, documents, too_long, wrapped

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documents are not beside the tests")

README_WORDS = 500
CONTRIBUTING_WORDS = 1000  # five minutes


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_wrapped(path: Path) -> None:
    assert not too_long(path.read_text(encoding="utf-8")), "python tests/docs/prose.py --write"


def test_all_documents_are_looked_at() -> None:
    names = {path.name for path in documents()}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "numerics.md", "results.md"} <= names
    assert set((ROOT / "benchmarks").rglob("README.md")) <= set(documents())


def test_the_readme_has_at_most_500_words_and_one_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= README_WORDS
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).exists()


def test_contributing_is_read_in_five_minutes() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split()) <= CONTRIBUTING_WORDS


LONG = "word " * 40


@pytest.mark.parametrize("text", [LONG, f"- {LONG}", f"1. {LONG}", f"- short\n\n  {LONG}", f"short\n{LONG}"])
def test_long_prose_is_found_and_wrapped(text: str) -> None:
    assert too_long(text)
    again = wrapped(text)
    assert not too_long(again)
    assert again.split() == text.split()
    assert max(map(len, again.splitlines())) <= COLUMNS
    assert wrapped(again) == again


WRITTEN = f"<!-- table x -->\n{LONG}\nshort\n\n{LONG}\n<!-- end -->"


@pytest.mark.parametrize(
    "text", [f"| {LONG} |", f"    {LONG}", f"```\n{LONG}\n```", f"# {LONG}", f"- item\n\n      {LONG}", "x" * 200, WRITTEN]
)
def test_tables_code_and_headings_are_kept(text: str) -> None:
    assert not too_long(text)
    assert wrapped(text) == text


def test_prose_behind_what_a_script_writes_is_wrapped() -> None:
    assert too_long(f"{WRITTEN}\n{LONG}") == [7]


def test_no_line_begins_like_an_item_where_none_is() -> None:
    text = " ".join(["wordwordw"] * 9 + ["- 5 words", "+ 7", "3. is"] * 9)
    assert not any(re.match(r"\s*([-+*]|\d+\.) ", line) for line in wrapped(text).splitlines())
