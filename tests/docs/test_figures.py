"""Every figure of the README and of docs/results.md that names its data is what the data say, and the tables there name theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import figures
import pytest
from figures import DATA, DOCUMENTS, NUMBER, ROOT, Figure, value

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the data of the benchmarks are not beside the tests")

RESULTS = "docs/results.md"


def figures_of(document: str) -> list[Figure]:
    return figures.figures(document, (ROOT / document).read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_figures_are_what_their_data_say(document: str) -> None:
    found = figures_of(document)
    assert len(found) >= 6
    wrong = [f"line {one.line}: {one.printed}, and the data say {one.as_printed()}" for one in found if not one.agrees()]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_comment_stands_behind_a_number(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert text.count("<!--") == len(figures_of(document))


def test_every_number_in_the_tables_of_results_names_its_data() -> None:
    """But for the first column, which says what a row is about."""
    for line in (ROOT / RESULTS).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|") or re.fullmatch(r"[| -]+", line):
            continue
        for cell in line.strip("|").split(" | ")[1:]:
            bare = re.sub(r"<!--.*?-->", "", cell)
            if not re.search(r"[A-Za-z`]{3}", bare):
                assert len(re.findall(NUMBER, bare)) == cell.count("<!--"), cell


def test_every_section_of_results_has_its_command() -> None:
    for section in re.split(r"^## ", (ROOT / RESULTS).read_text(encoding="utf-8"), flags=re.M)[1:]:
        assert re.search(r"^    (?:[A-Z_]+=\S+ )?(?:python benchmarks|vsparse )", section, re.M), section.splitlines()[0]


def test_six_numbers_stand_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Six numbers", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 6
    assert all(re.search(r"<!--[^>]*--> \|$", row) for row in rows)


def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    (tmp_path / "some.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(figures, "DATA", tmp_path)
    figures.content.cache_clear()


@pytest.mark.parametrize(
    ("printed", "expression", "agrees"),
    [
        ("93.0 %", "100 * doc.share", True),
        ("93.1 %", "100 * doc.share", False),
        ("93 %", "100 * doc.share", True),
        ("0.9304", "doc.share", True),
        ("0.9303", "doc.share", False),
        ("1,659", "doc.count", True),
        ("1,658", "doc.count", False),
        ("1.7·10³", "doc.count", True),
        ("1.6·10³", "doc.count", False),
        ("−2", "doc.rows[0].change", True),
        ("2", "doc.rows[0].change", False),
        ("4", "sum(doc.rows.change)", True),
        ("2.0", "mean(doc.rows.change)", True),
        ("6", "most(doc.rows.change)", True),
        ("1", 'count(values(doc["by name"]).word, "x")', True),
    ],
)
def test_a_wrong_figure_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, expression: str, agrees: bool) -> None:
    content = {
        "share": 0.93036,
        "count": 1659,
        "rows": [{"change": -2}, {"change": 6}],
        "by name": {"a b": {"word": "x"}, "c": {"word": "y"}},
    }
    data(tmp_path, monkeypatch, content)
    (found,) = figures.figures("page", f"it is {printed}<!-- some.json: {expression} --> here")
    assert found.agrees() == agrees
    figures.content.cache_clear()


@pytest.mark.parametrize("expression", ["__import__('os')", "doc.__class__.x()", "open('f')", "[1]", "doc if 1 else 2", "lambda: 1"])
def test_expressions_are_a_small_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    data(tmp_path, monkeypatch, {"a": 1})
    with pytest.raises((ValueError, KeyError)):
        value("some.json", expression)
    figures.content.cache_clear()
