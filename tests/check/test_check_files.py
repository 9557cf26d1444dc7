"""Files of an artifact, damaged and forged in every format: a verdict every time, and nothing confirmed that an execution contradicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_mutations import KINDS, broken_claims, mutate_files

from vsparse_check import check


def attack(original: Path, folder: Path, seeds: range) -> int:
    """Returns how many mutations were not confirmed; whatever `check` raises ends the test."""
    refused = 0
    for seed in seeds:
        what = mutate_files(original, folder, seed)
        found = check(folder)
        assert found.status in (0, 1, 2), what
        assert all(" " <= sign <= "~" or sign == "\n" for sign in found.sentence), what
        refused += not found.passed
        assert not (found.passed and broken_claims(folder, seed)), what
    return refused


def test_damaged_and_forged_files_get_a_verdict(tiny_artifact: Path, tmp_path: Path) -> None:
    count = 2 * len(KINDS)
    assert attack(tiny_artifact, tmp_path / "mutated", range(count)) > count // 4


@pytest.mark.slow
def test_damaged_and_forged_files_get_a_verdict_at_length(tiny_artifact: Path, tmp_path: Path) -> None:
    assert attack(tiny_artifact, tmp_path / "mutated", range(1000, 1400)) > 100


def test_the_judge_sees_a_margin_that_is_too_large(tiny_artifact: Path) -> None:
    """What would be found if the checker confirmed a claim that is false."""
    path = tiny_artifact / "certificate" / "certificate.json"
    text = path.read_text()
    content = json.loads(text)
    next(claim for claim in content["claims"] if claim["verdict"] == "certified")["margin_lower"] += 100
    try:
        assert broken_claims(tiny_artifact, 0) == []
        path.write_text(json.dumps(content))
        assert len(broken_claims(tiny_artifact, 0)) == 1
    finally:
        path.write_text(text)
