"""Gates: what is missing fails, and the checks of soundness cannot be turned off."""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
from pathlib import Path

import pytest

from report_artifact import LIVE_INT8, make_artifact
from vsparse.artifact import MODEL
from vsparse.artifact.certificate import read_certificate, write_certificate
from vsparse.artifact.checks import Gate
from vsparse.artifact.document import write_document, write_list
from vsparse.artifact.facts import Facts, gather
from vsparse.artifact.live import LIVE
from vsparse.errors import InputError
from vsparse.files import sha256_file
from vsparse.majority import AgainstMajority
from vsparse.pipeline.gates import judge, judge_training
from vsparse.recipe import load_recipe
from vsparse.stages.report import write_report
from vsparse.target import load_target

FREE = "gates={}"


def judged(directory: Path, *settings: str) -> dict[str, Gate]:
    """Gates by name."""
    gates = judge(load_recipe("digits", [FREE, *settings]), gather(directory), directory)
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


def failed(gates: dict[str, Gate]) -> set[str]:
    return {name for name, gate in gates.items() if gate.passed is False}


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
    share = {row.name: row.certified_accuracy for row in gather(copied).certificates}["int8"]
    assert 0 < share < 1
    for least, passes in ((share, True), (min(1.0, share + 0.01), False)):
        gates = judged(copied, 'export.precisions=["int8"]', f"gates.int8_certified_accuracy={least}")
        assert gates["certified accuracy of int8"].passed is passes
    assert "certified accuracy of int8" not in judged(copied, 'export.precisions=["int8"]')
    with pytest.raises(InputError, match=r"needs fp16 in export\.precisions"):
        load_recipe("digits", ["gates.fp16_certified_accuracy=0.5"])


# Collapse -------------------------------------------------------------------------------------------------------------

ONE_ANSWER = AgainstMajority(samples=40, correct=6, majority=6, gained=0, lost=0, answers=1)


def with_answers(facts: Facts, found: AgainstMajority, name: str) -> Facts:
    """The facts of an artifact one of whose networks answers as counted."""
    changed = {"against_majority": found}
    rows = tuple(row.model_copy(update=changed) if row.name == name else row for row in facts.certificates)
    return dataclasses.replace(facts, certificates=rows)


@pytest.mark.parametrize("name", ["sparse", "dense", "sequential"])
def test_a_network_of_one_answer_fails_whatever_the_recipe_asks(tiny_artifact: Path, name: str) -> None:
    facts = gather(tiny_artifact)
    assert judged(tiny_artifact)["collapse"].passed
    gates = judge(load_recipe("digits", [FREE]), with_answers(facts, ONE_ANSWER, name), tiny_artifact)
    assert [gate.name for gate in gates if not gate.passed] == ["collapse"]
    assert f"{name}: all 40 predictions are one class" in gates[0].got


def with_losses(facts: Facts, losses: list[float]) -> Facts:
    history = facts.history_sparse
    assert history is not None
    epochs = tuple(history.epochs[0].model_copy(update={"epoch": i + 1, "loss": loss}) for i, loss in enumerate(losses))
    return dataclasses.replace(facts, history_sparse=history.model_copy(update={"sparse": epochs}))


@pytest.mark.parametrize(
    ("losses", "passes"),
    [
        ([2.3, 1.5, 2.31, 2.31, 2.31], False),  # rose with the radius, to ln 10 = 2.3026 and above, and stayed
        ([2.3, 1.5, 2.31, 2.31, 2.2], True),  # came back
        ([2.31, 2.32, 2.31, 2.33, 2.31], True),  # never learnt: the accuracy says that
        ([1.5, 2.9, 1.2, 0.8, 0.7], True),
    ],
)
def test_a_loss_that_rose_and_never_came_back_fails(tiny_artifact: Path, losses: list[float], passes: bool) -> None:
    facts = with_losses(gather(tiny_artifact), losses)
    for gates in (judge(load_recipe("digits", [FREE]), facts, tiny_artifact), judge_training(load_recipe("digits", [FREE]), facts)):
        assert gates[0].name == "collapse"
        assert gates[0].passed is passes
        assert passes or "was 1.500 once, rose to 2.310 and never came back below 2.303" in gates[0].got


def with_validation(facts: Facts, found: AgainstMajority) -> Facts:
    assert facts.history_sparse is not None
    return dataclasses.replace(facts, history_sparse=facts.history_sparse.model_copy(update={"validation": found}))


@pytest.mark.parametrize("setting", ["train.l1=0.1", "train.terms.nrs=0.5"])
def test_a_loss_with_other_terms_is_not_compared(tiny_artifact: Path, setting: str) -> None:
    facts = with_losses(gather(tiny_artifact), [1.0, 5.0, 5.0, 5.0])
    assert judge(load_recipe("digits", [FREE, setting]), facts, tiny_artifact)[0].passed
    assert not judge(load_recipe("digits", [FREE]), facts, tiny_artifact)[0].passed
    # What its objective calls another loss than a cross-entropy is not compared either.
    assert facts.history_sparse is not None
    objective = facts.history_sparse.objective.model_copy(update={"is_cross_entropy": False})
    other = dataclasses.replace(facts, history_sparse=facts.history_sparse.model_copy(update={"objective": objective}))
    assert judge(load_recipe("digits", [FREE]), other, tiny_artifact)[0].passed


def test_training_alone_is_judged_on_the_validation_split(tiny_artifact: Path) -> None:
    facts = gather(tiny_artifact)
    assert facts.validation is not None
    assert facts.validation.samples == 145
    recipe = load_recipe("digits", [FREE])
    assert [gate.passed for gate in judge_training(recipe, facts)] == [True]
    assert [gate.passed for gate in judge_training(recipe, with_validation(facts, ONE_ANSWER))] == [False]
    assert [gate.passed for gate in judge_training(recipe, dataclasses.replace(facts, history_sparse=None))] == [False]


# Latency of another machine -------------------------------------------------------------------------------------------

LATENCY = "packed latency as a fraction of dense"


def aimed_at(directory: Path, target: str) -> Path:
    """Makes an artifact one for another target."""
    (directory / "target.toml").write_text(load_target(target).to_toml())
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["target.toml"] = sha256_file(directory / "target.toml")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.mark.parametrize("target", ["jetson-orin-nano", "raspberry-pi-5"])
@pytest.mark.parametrize("ratio", ["1000.0", "0.001"])
def test_latency_of_another_machine_neither_passes_nor_fails(copied: Path, target: str, ratio: str) -> None:
    gate = judged(aimed_at(copied, target), f"gates.latency_ratio={ratio}")[LATENCY]
    assert gate.passed is None
    assert f"measured on the build machine ({gather(copied).build_machine}), not on {target}" in gate.got
    assert failed(judged(copied, f"gates.latency_ratio={ratio}")) == set()


def test_latency_of_this_machine_is_judged(copied: Path) -> None:
    assert judged(copied, "gates.latency_ratio=0.001")[LATENCY].passed is False
    path = aimed_at(copied, "raspberry-pi-5") / "profile" / "onnxruntime-fp32.json"
    content = json.loads(path.read_text())
    for role in ("dense", "packed"):
        content[role]["machine"]["processor"] = "Raspberry Pi 5 Model B Rev 1.0"
    path.write_text(json.dumps(content))
    assert judged(copied, "gates.latency_ratio=1000.0")[LATENCY].passed is True
    assert gather(copied).not_measured == ()


def test_the_report_says_what_was_not_measured_on_the_target(copied: Path) -> None:
    aimed_at(copied, "jetson-orin-nano")
    gates = judged(copied, "gates.latency_ratio=1000.0")
    write_list(copied / "gates.json", list(gates.values()))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["gates.json"] = sha256_file(copied / "gates.json")
    (copied / "manifest.json").write_text(json.dumps(manifest))
    page = write_report(copied).read_text()
    found = json.loads((copied / "report.json").read_text())
    assert found["verdict"] == "open"
    assert found["not_measured"] == ["latency on jetson-orin-nano", "the contract audit on jetson-orin-nano"]
    assert "Every gate passed" not in page
    assert "Every gate that could be measured here passed" in page
    place = page.index("Not measured on jetson-orin-nano")
    assert place < page.index("What is guaranteed") < page.index('id="latency"')
    assert page.count(f"easured on the build machine ({html.escape(found['build_machine'])}), not on jetson-orin-nano") >= 4
    assert found["sparse"]["majority_share"] == found["sparse"]["against_majority"]["majority"] / 40


@pytest.mark.parametrize(("least", "passed"), [(0.82, True), (0.83, False)])
def test_the_live_gate_counts_what_the_device_certifies_with_the_right_class(tmp_path: Path, least: float, passed: bool) -> None:
    directory = make_artifact(tmp_path / "artifact")
    (directory / "target.toml").unlink()  # a stub
    gate = judged(directory, "deploy.live=true", f"gates.live_certified_accuracy={least}")["live certified accuracy"]
    assert (gate.got, gate.passed) == ("82.50 %", passed)
    (directory / LIVE).unlink()
    absent = judged(directory, "deploy.live=true", f"gates.live_certified_accuracy={least}")["live certified accuracy"]
    assert (absent.got, absent.passed) == ("not found", False)


@pytest.mark.parametrize(("chosen", "got"), [("int8-c", "80.00 %"), ("sequential", "82.50 %"), ("int8", "82.50 %"), ("", "82.50 %")])
def test_the_live_gate_is_about_the_form_in_c_that_was_chosen(chosen: str, got: str, tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "artifact")
    (directory / "target.toml").unlink()  # a stub
    write_document(directory / LIVE, LIVE_INT8)
    recipe = load_recipe("digits", [FREE, "deploy.live=true", "gates.live_certified_accuracy=0.8"])
    gates = {gate.name: gate for gate in judge(recipe, gather(directory), directory, chosen)}
    assert (gates["live certified accuracy"].got, gates["live certified accuracy"].passed) == (got, True)
