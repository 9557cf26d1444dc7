"""Gates: what is missing fails, and the checks of soundness cannot be turned off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vsparse.artifact import MODEL
from vsparse.errors import InputError
from vsparse.gates import judge
from vsparse.recipe import load_recipe
from vsparse.stages.report.checks import Gate
from vsparse.stages.report.facts import gather
from vsparse.stages.verify.claims import read_certificate, write_certificate

FREE = "gates={}"


def judged(directory: Path, *settings: str) -> dict[str, Gate]:
    """Gates by name."""
    gates = judge(load_recipe("digits", [FREE, *settings]), gather(directory), directory)
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


def failed(gates: dict[str, Gate]) -> set[str]:
    return {name for name, gate in gates.items() if not gate.passed}


@pytest.fixture
def copied(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))


def further(directory: Path, precision: str) -> None:
    """Puts a certificate of a further precision into an artifact: that of the float32 file, about a copy of it."""
    model = f"model/model.{precision}.onnx"
    shutil.copyfile(directory / MODEL, directory / model)
    shutil.copyfile(directory / "model" / "runtime_graph.json", directory / "model" / f"runtime_graph.{precision}.json")
    shutil.copytree(directory / "certificate" / "sequential", directory / "certificate" / precision)
    path = directory / "certificate" / precision / "certificate.json"
    certificate = read_certificate(path)
    reference = certificate.model.model_copy(update={"file": model})
    claims = tuple(claim.model_copy(update={"model": reference}) for claim in certificate.claims)
    write_certificate(path, certificate.model_copy(update={"model": reference, "claims": claims}))


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


def test_every_further_certificate_has_its_gates(copied: Path) -> None:
    further(copied, "int8")
    gates = judged(copied, 'export.precisions=["int8"]')
    assert failed(gates) == set()
    assert {"certificates", "contract audit", "contract audit of sequential", "contract audit of int8"} <= set(gates)
    assert gates["certificates"].got == "all 4 stand"


@pytest.mark.parametrize("place", ["sequential", "int8"])
@pytest.mark.parametrize("damage", ["audit absent", "audit failed", "audit counts a violation", "void", "changed afterwards", "absent"])
def test_a_further_certificate_that_does_not_stand_fails(copied: Path, place: str, damage: str) -> None:
    further(copied, "int8")
    audit, certificate = (copied / "certificate" / place / name for name in ("audit.json", "certificate.json"))
    wanted = {f"contract audit of {place}"} if damage.startswith("audit") else {"certificates"}
    found = json.loads(audit.read_text())
    if damage == "audit absent":
        audit.unlink()
    elif damage == "audit failed":
        audit.write_text(json.dumps({**found, "passed": False, "reason": "made to fail"}))
    elif damage == "audit counts a violation":
        audit.write_text(json.dumps({**found, "violations": 1}))
    elif damage == "void":
        write_certificate(certificate, read_certificate(certificate).voided("made void"))
    elif damage == "changed afterwards":
        text = certificate.read_text()
        assert '"batch": "1"' in text
        certificate.write_text(text.replace('"batch": "1"', '"batch": "2"'))
    else:
        shutil.rmtree(certificate.parent)
    gates = judged(copied, 'export.precisions=["int8"]')
    assert failed(gates) == wanted
    if damage != "audit absent":
        got = gates[wanted.pop()].got
        assert {"audit failed": "made to fail", "void": "made void", "absent": "not found"}.get(damage, "") in got


@pytest.mark.parametrize("place", ["certificate", "certificate/dense"])
def test_a_void_certificate_of_either_network_fails(copied: Path, place: str) -> None:
    path = copied / place / "certificate.json"
    write_certificate(path, read_certificate(path).voided("made void"))
    gates = judged(copied)
    assert failed(gates) == {"certificates"}
    assert f"{place}/certificate.json is void (made void)" in gates["certificates"].got


def test_only_a_c_source_without_a_compiler_may_go_unaudited_and_says_so(copied: Path) -> None:
    further(copied, "int8")
    for place in ("sequential", "int8"):
        (copied / "certificate" / place / "audit.json").unlink()
        path = copied / "certificate" / place / "certificate.json"
        certificate = read_certificate(path)
        write_certificate(path, certificate.model_copy(update={"note": f"{certificate.note}; not audited: no C compiler is on the path"}))
    gates = judged(copied, 'export.precisions=["int8"]')
    assert failed(gates) == {"contract audit of int8"}
    assert gates["contract audit of sequential"].got == "not audited: no C compiler is on the path"


def test_a_model_file_that_is_not_the_certified_one_fails(copied: Path) -> None:
    shutil.copyfile(copied / "model" / "dense.fp32.onnx", copied / MODEL)
    assert "is not the file that was certified" in judged(copied)["certificates"].got
    assert {"certificates", "the runtime folds nothing"} <= failed(judged(copied))


def test_a_precision_that_was_asked_for_and_is_not_there_fails(copied: Path) -> None:
    gates = judged(copied, 'export.precisions=["fp16"]')
    assert failed(gates) == {"certificates", "the runtime folds nothing"}
    assert gates["certificates"].got == "fp16: not found"


def test_thresholds_of_a_precision_are_judged_where_they_are_asked_for(copied: Path) -> None:
    further(copied, "int8")
    share = {row.name: row.certified_share for row in gather(copied).certificates}["int8"]
    assert 0 < share < 1
    for least, passes in ((share, True), (min(1.0, share + 0.01), False)):
        gates = judged(copied, 'export.precisions=["int8"]', f"gates.int8_certified_accuracy={least}")
        assert gates["certified accuracy of int8"].passed is passes
    assert "certified accuracy of int8" not in judged(copied, 'export.precisions=["int8"]')
    with pytest.raises(InputError, match=r"needs fp16 in export\.precisions"):
        load_recipe("digits", ["gates.fp16_certified_accuracy=0.5"])
