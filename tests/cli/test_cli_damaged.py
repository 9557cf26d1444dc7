"""Damaged inputs: each gives one sentence on stderr and the right exit code, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import damaged_artifacts
import damaged_data
import damaged_documents
import damaged_models
import pytest
from damaged_cases import CASES

from vsparse.cli import run

# Importing them fills the registry.
SOURCES = (damaged_documents, damaged_data, damaged_models, damaged_artifacts)


@pytest.mark.parametrize("name", CASES)
def test_damaged_input_gives_one_sentence_and_the_right_code(
    name: str, tmp_path: Path, tiny_artifact: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VSPARSE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code, says, make = CASES[name]
    arguments = make(tmp_path, tiny_artifact)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    capfd.readouterr()
    assert run(arguments) == code, capfd.readouterr().err
    out, err = capfd.readouterr()
    sentences = [line for line in err.splitlines() if line.strip()]
    assert len(sentences) == 1 or code == 1, err
    assert says in err + out
    assert "Traceback" not in err
    assert "bug in vsparse" not in err
    after = [path for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(after) == before, "a refused command must leave nothing behind"


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) >= 40
