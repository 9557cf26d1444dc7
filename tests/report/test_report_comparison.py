"""Two artifacts on one page: what differs, paired on the same samples, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_report_page import Page

from report_artifact import certificate, claims, make_artifact, write, write_manifest
from vsparse.cli import run
from vsparse.errors import InputError
from vsparse.proportion import fisher, mcnemar
from vsparse.stages.report import compare_artifacts, write_comparison


def two(tmp_path: Path, seed: int = 5, shift: int = 0) -> tuple[Path, Path]:
    """Writes two artifacts whose deployed network differs; with `shift` the ids do, so that no sample is the same."""
    a, b = make_artifact(tmp_path / "a"), make_artifact(tmp_path / "b")
    rows = [{**row, "id": row["id"] + shift} for row in claims([36] * 10, seed)]
    write(b / "certificate" / "certificate.json", certificate(rows, [str(i) for i in range(10)]))
    (b / "recipe.toml").write_text('name = "<b>other</b>"\n[data]\nname = "digits"\n[train]\nobjective = "crown-ibp"\n')
    write_manifest(b)
    return a, b


def certified(directory: Path) -> list[bool]:
    rows = json.loads((directory / "certificate" / "certificate.json").read_text())["claims"]
    return [row["verdict"] == "certified" and row["label"] == row["predicted"] for row in rows]


def test_the_same_samples_are_compared_in_pairs(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    found = compare_artifacts(a, b)
    share = next(one for one in found.shares if one.form == "sparse" and one.share == "certified")
    pairs = list(zip(certified(a), certified(b), strict=True))
    assert (share.only_a, share.only_b) == (pairs.count((True, False)), pairs.count((False, True)))
    assert share.p_value == mcnemar(pairs.count((True, False)), pairs.count((False, True)))
    assert share.samples_in_both == 360
    assert {one.name for one in found.recipe} == {"name", "description", "train.objective"}
    dense = next(one for one in found.shares if one.form == "dense" and one.share == "certified")
    assert dense.verdict == "the same on every sample"
    assert not found.same
    assert compare_artifacts(a, a).same


def test_other_samples_are_not_paired_and_other_questions_are_named(tmp_path: Path) -> None:
    a, b = two(tmp_path, shift=1000)
    share = next(one for one in compare_artifacts(a, b).shares if one.share == "certified")
    assert (share.only_a, share.samples_in_both) == (None, 0)
    assert share.p_value == fisher(sum(certified(a)), 360, sum(certified(b)), 360)
    c = make_artifact(tmp_path / "c", epsilon="0.1")
    assert any("different properties" in note for note in compare_artifacts(a, c).notes)


def test_of_more_samples_those_of_both_are_compared(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    rows = claims([36] * 10, 5)[:50]
    write(b / "certificate" / "certificate.json", certificate(rows, [str(i) for i in range(10)]))
    write_manifest(b)
    found = compare_artifacts(a, b)
    share = next(one for one in found.shares if one.form == "sparse" and one.share == "certified")
    ours, theirs = certified(a)[:50], certified(b)
    assert share.samples_in_both == 50
    assert share.points == pytest.approx(100 * (sum(theirs) - sum(ours)) / 50)
    assert any("on more samples" in note for note in found.notes)


def test_the_page_escapes_and_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two(tmp_path)
    page = tmp_path / "page.html"
    assert run(["report", "--compare", str(a), str(b), "--out", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["page"] == str(page)
    assert told == compare_artifacts(a, b).as_dict() | {"page": str(page)}
    read = Page(page.read_text())
    assert "<b>other</b>" in read.text
    assert "McNemar" in read.text
    assert "<table" in compare_artifacts(a, b)._repr_html_()
    for wrong in (["report"], ["report", str(a), "--out", "x.html"], ["report", str(a), "--compare", str(a), str(b)]):
        assert run(wrong) == 2
    assert run(["report", "--compare", str(a), str(tmp_path / "none")]) == 2
    for path in (a / "page.html", tmp_path / "page.txt", tmp_path):
        with pytest.raises(InputError):
            write_comparison(compare_artifacts(a, b), path)
