"""A build without the second verifier: told before training, open in its gates, confirmed by the checker, and never forged into passed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import load, rewritten, save, sign, strip

from tiny_build import TINY
from vsparse import cli, second_opinion
from vsparse.pipeline.build import BuildResult, build
from vsparse.progress import Event
from vsparse.recheck import recheck
from vsparse_check import check

CROSSED, GATE = "certificate/cross_check.json", "cross-check with auto_LiRPA"
REASON = f"not run: {second_opinion.NOT_INSTALLED}"
PASSED = {
    "passed": True,
    "reason": "",
    "second_verifier": "auto_LiRPA 0.3",
    "samples": 2,
    "bounds_compared": 18,
    "largest_excess": 1e-15,
    "largest_shortfall": 1e-15,
    "largest_excess_with_rounding": -1e-6,
}


@pytest.fixture(scope="module")
def built(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildResult, list[Event]]:
    """The tiny build where auto_LiRPA is not installed; `tiny_artifact` is that where it is."""
    told: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSPARSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setitem(sys.modules, "auto_LiRPA", None)
        out = tmp_path_factory.mktemp("without") / "artifact"
        return build("digits", settings=list(TINY), out=out, reporter=told.append), told


def test_the_build_passes_and_says_before_training_what_is_not_run(built: tuple[BuildResult, list[Event]]) -> None:
    result, told = built
    assert result.passed
    states = {gate.name: gate for gate in result.gates}
    assert (states[GATE].passed, states[GATE].got) == (None, REASON)
    assert [gate.name for gate in result.gates if gate.passed is None] == [GATE]
    texts = [event.text for event in told]
    notes = [number for number, text in enumerate(texts) if "the cross-check will not be run: auto_LiRPA is not installed" in text]
    assert len(notes) == 1
    assert notes[0] < next(number for number, event in enumerate(told) if event.kind in ("start", "done"))
    # Whether it is installed decides nothing about training, so that installing it later trains nothing anew.
    assert {record.stage: record.reused for record in result.lineage if record.stage.startswith("train")} == {
        "train-sparse": True,
        "train-dense": True,
    }


def test_record_note_and_report_say_it_too(built: tuple[BuildResult, list[Event]]) -> None:
    folder = built[0].directory
    record = load(folder / CROSSED)
    assert (record["passed"], record["reason"], record["bounds_compared"]) == (None, REASON, 0)
    assert load(folder / "certificate/certificate.json")["note"] == f"no second opinion: {REASON}"
    said = load(folder / "report.json")
    assert (said["verdict"], said["cross_check"]["passed"], said["cross_check"]["reason"]) == ("open", None, REASON)
    page = (folder / "report.html").read_text()
    assert 'Cross-check: <span class="muted">not run</span>' in page
    assert "A gate that is not run needs a tool that was not installed." in page
    assert "A gate that is not measured" not in page


def test_the_exit_code_is_0_and_the_terminal_has_a_line(
    built: tuple[BuildResult, list[Event]], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    settings = [part for setting in TINY for part in ("--set", setting)]
    assert cli.run(["build", "digits", "--out", str(built[0].directory), *settings]) == 0
    assert f"open    {GATE}: {REASON}" in capfd.readouterr().out


def test_training_on_its_bounds_is_refused_before_anything_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    assert cli.run(["build", "digits-crown-ibp", "--out", str(tmp_path / "out")]) == 3
    said = capfd.readouterr().err
    assert second_opinion.NOT_INSTALLED in said
    assert 'set train.engine = "vsparse"' in said
    assert not (tmp_path / "out").exists()


def test_the_claims_are_those_of_a_build_with_it(built: tuple[BuildResult, list[Event]], tiny_artifact: Path) -> None:
    def claims(folder: Path) -> list[dict[str, Any]]:
        found = load(folder / "certificate/certificate.json")["claims"]
        return [{key: value for key, value in claim.items() if key != "time_ms"} for claim in found]

    assert claims(built[0].directory) == claims(tiny_artifact)


def test_both_checkers_confirm_it(built: tuple[BuildResult, list[Event]]) -> None:
    for found in (check(built[0].directory), recheck(built[0].directory)):
        assert (found.status, found.verdict) == (0, "confirmed"), found.sentence


def gate_says(folder: Path, passed: bool | None, got: str = "no violation") -> None:
    """Lets gates and report say so of the cross-check."""

    def change(gates: list[dict[str, Any]]) -> None:
        for gate in gates:
            if gate["name"] == GATE:
                gate.update(passed=passed, got=got)

    rewritten(folder, "gates.json", change)
    rewritten(folder, "report.json", lambda content: change(content["gates"]))
    rewritten(folder, "report.json", lambda content: content.update(verdict="open" if passed is None else "passed"))


def record_says(folder: Path, **said: Any) -> None:
    """Lets record, report and gates say that it passed, with these numbers."""
    rewritten(folder, CROSSED, lambda content: content.update({**PASSED, **said}))
    details = load(folder / CROSSED)
    rewritten(folder, "report.json", lambda content: content["cross_check"].update(passed=True, reason="", details=details))
    gate_says(folder, True)


def no_note(folder: Path) -> None:
    """Takes the note away, and signs the certificate anew."""
    content = load(folder / "certificate/certificate.json")
    save(folder, "certificate", content | {"note": ""})


def without_gate(folder: Path) -> None:
    def change(gates: list[dict[str, Any]]) -> None:
        gates[:] = [gate for gate in gates if gate["name"] != GATE]

    rewritten(folder, "gates.json", change)
    rewritten(folder, "report.json", lambda content: (change(content["gates"]), content.update(verdict="passed")))


def left_out(folder: Path) -> None:
    (folder / CROSSED).unlink()
    rewritten(folder, "report.json", lambda content: content.update(cross_check=None))
    gate_says(folder, True)


def another_reason(folder: Path) -> None:
    """As if auto_LiRPA had no bounds for the network, where the gate passes."""
    reason = "auto_LiRPA 0.3 cannot bound this network by CROWN (x)"
    rewritten(folder, CROSSED, lambda content: content.update(reason=reason))
    rewritten(folder, "report.json", lambda content: content["cross_check"].update(reason=reason, details={}))
    gate_says(folder, True, f"no second opinion: {reason}")


def record_alone(folder: Path) -> None:
    """No gates and no report that could contradict the record."""
    strip(folder)
    rewritten(folder, CROSSED, lambda content: content.update(PASSED))


FORGERIES: dict[str, Callable[[Path], None]] = {
    "the gate passed": lambda folder: gate_says(folder, True),
    "the gate passed with the reason": lambda folder: gate_says(folder, True, REASON),
    "the gate is open for another reason": lambda folder: gate_says(folder, None, "not run: no time"),
    "the gate is gone": without_gate,
    "the record is gone": left_out,
    "the record passed": record_says,
    "the record passed, alone": record_alone,
    "another reason": another_reason,
}
# With the note gone and the certificate signed anew: numbers that no comparison has.
NUMBERS: dict[str, dict[str, Any]] = {
    "nothing compared": {"samples": 0, "bounds_compared": 0, "largest_excess": None, "largest_excess_with_rounding": None},
    "fewer margins than there are": {"bounds_compared": 17},
    "more samples than asked for": {"samples": 3, "bounds_compared": 27},
    "a bound that is too tight": {"largest_excess": 2e-4},
    "one that is too tight with rounding": {"largest_excess_with_rounding": 2e-4},
    "another tolerance": {"largest_excess": 2e-4, "tolerance": 1.0},
    "no number": {"largest_excess": None},
}


def refuted(folder: Path) -> str:
    sign(folder)
    found = check(folder)
    assert (found.status, found.verdict) == (1, "refuted"), found.sentence
    return found.problem


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_not_run_is_not_forged_into_passed(built: tuple[BuildResult, list[Event]], tmp_path: Path, forge: Callable[[Path], None]) -> None:
    folder = Path(shutil.copytree(built[0].directory, tmp_path / "forged"))
    forge(folder)
    assert "cross" in refuted(folder)


@pytest.mark.parametrize("said", NUMBERS.values(), ids=NUMBERS)
def test_a_comparison_that_passed_has_the_numbers_of_one(
    built: tuple[BuildResult, list[Event]], tmp_path: Path, said: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(built[0].directory, tmp_path / "forged"))
    no_note(folder)
    record_says(folder, **said)
    assert "cross_check.json" in refuted(folder)


@pytest.mark.skipif(bool(second_opinion.absence()), reason="auto_LiRPA is not installed")
def test_a_failed_comparison_voids_the_certificate(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "forged"))
    strip(folder)
    rewritten(folder, CROSSED, lambda content: content.update(passed=False, reason="a lower bound exceeds auto_LiRPA's"))
    assert "cross_check.json is contradicted by the certificate" in refuted(folder)
