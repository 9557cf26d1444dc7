"""docs/reference-cli.md lists every command with every option, and none that is not there; a build tells of every certificate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from vsparse import cli
from vsparse.artifact.facts import gather
from vsparse.cli import app
from vsparse.cli.results import show_build
from vsparse.pipeline.build import BuildResult
from vsparse.pipeline.figures import key_figures

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference-cli.md"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="the documents are not beside the tests")
def test_the_reference_lists_every_command_and_option() -> None:
    sections: dict[str, str] = {}
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S):
        sections.update(dict.fromkeys(re.findall(r"vsparse ([a-z]+)", title), text))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # the group's own attribute
    assert set(sections) == set(commands)
    for name, command in commands.items():
        parts = getattr(command, "commands", {"": command}).values()
        there = {option for part in parts for item in part.params for option in item.opts if option.startswith("--")} - {"--help"}
        assert set(re.findall(r"(--[a-z][a-z0-9-]*)", sections[name])) == there, name


def test_a_build_prints_a_line_for_each_further_certificate(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = gather(tiny_artifact)
    rows = {row.name: row for row in facts.certificates}
    figures = {**key_figures(facts), "int8": {"certified_accuracy": 0.5, "robust_accuracy": 0.75, "clean_accuracy": 1.0}}
    figures["fp16"] = {**figures["int8"], "contract": "fp16-accumulate"}
    capsys.readouterr()
    show_build(BuildResult(tiny_artifact, "report", facts.gates, figures, ()), json=False)
    lines = capsys.readouterr().out.splitlines()
    (about_c,) = [line for line in lines if line.startswith("contract sequential:")]
    assert f"certified {100 * rows['sequential'].certified_accuracy:.1f} %" in about_c
    assert f"audited in {rows['sequential'].audit_executions:,} executions, 0 violations" in about_c
    assert "contract int8: certified 50.0 %, robust 75.0 %, clean 100.0 % (not audited)" in lines
    assert "fp16, contract fp16-accumulate: certified 50.0 %, robust 75.0 %, clean 100.0 % (not audited)" in lines
    assert any(line.startswith("passed  certificates: all 3 stand") for line in lines)


def test_help_is_short_too_and_shells_can_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["-h"]) == 0
    short = capsys.readouterr().out
    assert "--install-completion" in short
    assert cli.run(["--help"]) == 0
    assert capsys.readouterr().out == short
    assert cli.run(["verify", "-h"]) == 0
    assert "--smoothing" in capsys.readouterr().out
