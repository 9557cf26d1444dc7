"""Gates: what is missing fails, and the checks of soundness cannot be turned off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vsparse.gates import judge
from vsparse.recipe import load_recipe
from vsparse.stages.report.facts import gather


def test_every_gate_can_fail_and_pass(tiny_artifact: Path) -> None:
    facts = gather(tiny_artifact)
    easy = judge(
        load_recipe("digits", ["gates={certified_accuracy=0.0001, weights_removed=0.1, latency_ratio=1000.0, certified_loss=1.0}"]),
        facts,
        tiny_artifact,
    )
    assert [gate.name for gate in easy if not gate.passed] == []
    hard = judge(
        load_recipe("digits", ["gates={certified_accuracy=1.0, weights_removed=0.999, latency_ratio=0.001}"]), facts, tiny_artifact
    )
    assert len([gate for gate in hard if not gate.passed]) == 3


@pytest.mark.parametrize("name", ["audit", "cross_check"])
@pytest.mark.parametrize("damage", ["absent", "failed"])
def test_a_check_of_soundness_that_failed_or_is_absent_fails_its_gate(tiny_artifact: Path, tmp_path: Path, name: str, damage: str) -> None:
    copied = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    path = copied / "certificate" / f"{name}.json"
    if damage == "absent":
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "passed": False, "reason": "made to fail"}))
    gates = judge(load_recipe("digits", ["gates={}"]), gather(copied), copied)
    assert [gate.passed for gate in gates].count(False) == 1
