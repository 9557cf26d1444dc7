"""Reading an artifact: counts from claims, damage refused in one sentence, and nothing shown that its own reader would refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from report_artifact import MODEL, certificate, claims, make_artifact, write, write_manifest
from vsparse.artifact.certificate import Certificate, read_certificate, write_certificate
from vsparse.artifact.document import parse
from vsparse.artifact.facts import gather
from vsparse.errors import GateError, InputError
from vsparse.stages.report import write_report
from vsparse.stages.report.render import html


def small(label: int, predicted: int, verdict: str, number: int) -> dict[str, Any]:
    """One claim, wrong undisturbed where it is."""
    clean = predicted != label and verdict == "falsified"
    return {
        "id": number,
        "input_sha256": "0" * 64,
        "label": label,
        "predicted": predicted,
        "verdict": verdict,
        "method": "clean" if clean else {"falsified": "attack", "certified": "crown"}.get(verdict, "none"),
        "margin_lower": 0.5 if verdict == "certified" else None,
        "time_ms": 2.0,
        "proof": {"falsified": "counterexamples.npz", "certified": "derivable"}.get(verdict),
    }


def test_counts_by_hand(tmp_path: Path) -> None:
    rows = [
        small(0, 0, "certified", 0),
        small(0, 0, "unknown", 1),
        small(0, 1, "falsified", 2),
        small(0, 1, "unknown", 3),
        small(2, 2, "falsified", 4),
        small(2, 2, "certified", 5),
        small(2, -1, "unknown", 6),
        small(3, 3, "certified", 7),
    ]
    write(tmp_path / "certificate" / "certificate.json", certificate(rows, ["a", "b", "c"]))
    found = gather(tmp_path).sparse
    assert found is not None
    assert (found.samples, found.correct, found.robust, found.certified, found.falsified, found.unknown) == (8, 5, 4, 3, 1, 1)
    assert (found.clean_accuracy, found.robust_accuracy, found.certified_accuracy) == (5 / 8, 4 / 8, 3 / 8)
    assert [(row.name, row.samples, row.correct, row.robust, row.certified) for row in found.classes] == [
        ("a", 4, 2, 2, 1),
        ("b", 0, 0, 0, 0),
        ("c", 3, 2, 1, 1),
        ("3", 1, 1, 1, 1),
    ]
    assert [(row.name, row.certified, row.falsified, row.unknown, row.time_ms_total) for row in found.methods] == [
        ("clean", 0, 1, 0, 2.0),
        ("crown", 3, 0, 0, 6.0),
        ("attack", 0, 1, 0, 2.0),
        ("none", 0, 0, 3, 6.0),
    ]


def test_a_certificate_comes_back_as_it_was_written(tmp_path: Path) -> None:
    content = certificate(claims([6, 6], 4), ["a", "b"])
    content.pop("certificate_sha256")
    whole = parse(Certificate, content, tmp_path)
    path = tmp_path / "certificate" / "certificate.json"
    write_certificate(path, whole)
    assert read_certificate(path) == whole
    found = gather(tmp_path).sparse
    assert found is not None
    assert found.void_reason == ""
    assert found.clean_accuracy == whole.summary.clean_accuracy
    assert found.robust_accuracy == whole.summary.robust_accuracy
    assert found.certified_accuracy == whole.summary.certified_accuracy
    write_certificate(path, whole.voided("a test"))
    assert gather(tmp_path).verdict == "void"


def test_keys_of_the_summary_stay_what_hashes_are_over() -> None:
    summary = certificate(claims([6, 6], 4), ["a", "b"])["summary"]
    assert {"clean_accuracy", "attacked_accuracy", "certified_accuracy"} <= set(summary)
    assert set(summary["classes"][0]) == {"name", "samples", "correct", "attacked", "certified"}


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def _text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


# Seen: each was shown as if nothing were wrong, by a reader that the report had of its own.


def test_a_certificate_without_its_hash_is_refused_with_the_epsilon_that_was_edited_in(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    path = directory / CERTIFICATE
    content = json.loads(path.read_text())
    content.pop("certificate_sha256")
    for part in (content, *content["claims"]):
        part["property"]["epsilon"] = "0.9"
    path.write_text(json.dumps(content))
    for read in (lambda: read_certificate(path), lambda: gather(directory), lambda: write_report(directory)):
        with pytest.raises(InputError, match=r"certificate\.json has no certificate_sha256"):
            read()
    assert not (directory / "report.html").exists()


@pytest.mark.parametrize("word", ["sound", "ok"])
@pytest.mark.parametrize("place", ["certificate/audit.json", "certificate/cross_check.json"])
def test_another_word_for_passed_is_no_passed(tmp_path: Path, word: str, place: str) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    content = json.loads((directory / place).read_text())
    content[word] = content.pop("passed")
    write(directory / place, content)
    with pytest.raises(InputError, match=rf"{Path(place).name} is damaged: passed: field required"):
        gather(directory)
    content["passed"] = True
    write(directory / place, content)
    with pytest.raises(InputError, match=rf"{Path(place).name} is damaged: {word} is not a known key"):
        gather(directory)


@pytest.mark.parametrize("value", ["true", "yes", 1, 1.0, None, [True]])
def test_what_is_no_bool_is_no_verdict(tmp_path: Path, value: Any) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    _edit(lambda c: c.update(passed=value))(directory / "certificate" / "audit.json")
    with pytest.raises(InputError, match=r"audit\.json is damaged: passed: input should be a valid boolean"):
        gather(directory)


CERTIFICATE = "certificate/certificate.json"
# A file, what is done to it, and the key that the sentence names.
DAMAGES: list[tuple[str, str, Callable[[Path], None]]] = [
    (CERTIFICATE, "", _text("")),
    (CERTIFICATE, "", _text("[]")),
    (CERTIFICATE, "certificate_sha256", _text("{}")),
    (CERTIFICATE, "", _text("[" * 100_000)),
    (CERTIFICATE, "", lambda path: path.write_bytes(b"\xff\xfe{}") and None),
    (CERTIFICATE, "claims", _edit(lambda c: c.update(claims=[]))),
    (CERTIFICATE, "two claims", _edit(lambda c: c["claims"].append(c["claims"][0]))),
    (CERTIFICATE, "claims.0.verdict", _edit(lambda c: c["claims"][0].update(verdict="safe"))),
    (CERTIFICATE, "claims.0.label", _edit(lambda c: c["claims"][0].update(label="0"))),
    (CERTIFICATE, "claims.0.label", _edit(lambda c: c["claims"][0].update(label=-1))),
    (CERTIFICATE, "claims.0.label", _edit(lambda c: c["claims"][0].update(label=True))),
    (CERTIFICATE, "claims.0", _edit(lambda c: c["claims"][0].update(verdict="certified", margin_lower=0.0, predicted=0, label=0))),
    (CERTIFICATE, "claims.0", _edit(lambda c: c["claims"][0].update(verdict="certified", margin_lower=None, predicted=0, label=0))),
    (CERTIFICATE, "claims.0", _edit(lambda c: c["claims"][0].update(verdict="certified", margin_lower=1.0, predicted=1, label=0))),
    (CERTIFICATE, "", _edit(lambda c: c["claims"][0].update(margin_lower=float("nan")))),
    (CERTIFICATE, "", _edit(lambda c: c["claims"][0].update(time_ms=float("inf")))),
    (CERTIFICATE, "", lambda path: path.write_text(path.read_text().replace('"time_ms": ', '"time_ms": 1e999, "x": ', 1)) and None),
    (CERTIFICATE, "property.epsilon", _edit(lambda c: c["property"].update(epsilon="a lot"))),
    (CERTIFICATE, "model", _edit(lambda c: c.pop("model"))),
    (CERTIFICATE, "contract", _edit(lambda c: c.update(contract=7))),
    (CERTIFICATE, "summary", _edit(lambda c: c["summary"].update(certified=0))),
    (CERTIFICATE, "summary.attacked_accuracy", _edit(lambda c: c["summary"].update(robust_accuracy=c["summary"].pop("attacked_accuracy")))),
    ("certificate/curve.json", "sparse.0.certified_accuracy", _edit(lambda c: c["sparse"][0].update(certified_accuracy=1.5))),
    ("certificate/curve.json", "sparse.0.epsilon_value", _edit(lambda c: c["sparse"][0].pop("epsilon_value"))),
    ("certificate/curve.json", "sparse.0", _edit(lambda c: c["sparse"][0].update(epsilon_value=0.5))),
    ("certificate/curve.json", "sparse", _edit(lambda c: c["sparse"].append(3))),
    ("certificate/curve.json", "order", _edit(lambda c: c["sparse"].reverse())),
    ("certificate/curve.json", "points", _edit(lambda c: c.update(points=c.pop("sparse")))),
    ("certificate/curve.json", "one network", _edit(lambda c: c.update(dense=c["sparse"]))),
    ("certificate/counterexamples.npz", "", _text("no zip")),
    ("certificate/audit.json", "violations", _edit(lambda c: c.update(violations="none"))),
    ("certificate/audit.json", "violations", _edit(lambda c: c.update(violations=-1))),
    ("certificate/audit.json", "violations", _edit(lambda c: c.update(violations=["one"]))),
    ("certificate/audit.json", "violations", _edit(lambda c: c.update(violated=c.pop("violations")))),
    ("compress/layers.json", "rows.0.weights_before", _edit(lambda c: c["rows"][0].update(weights_before=-5))),
    ("compress/layers.json", "rows.0.weights_before", _edit(lambda c: c["rows"][0].update(weights_before=1.5))),
    ("compress/layers.json", "layers", _edit(lambda c: c.update(layers=c.pop("rows")))),
    ("compress/layers.json", "totals", _edit(lambda c: c.pop("totals"))),
    ("profile/onnxruntime-fp32.json", "dense.samples_ms", _edit(lambda c: c["dense"].update(samples_ms=[]))),
    ("profile/onnxruntime-fp32.json", "dense.samples_ms.0", _edit(lambda c: c["dense"].update(samples_ms=[-1.0]))),
    ("profile/onnxruntime-fp32.json", "dense.samples_ms.0", _edit(lambda c: c["dense"].update(samples_ms=["1"]))),
    ("profile/onnxruntime-fp32.json", "packed", _edit(lambda c: c.update(sparse=c.pop("packed")))),
    ("train/history.json", "sparse.0.loss", _edit(lambda c: c["sparse"][0].update(loss="low"))),
    ("train/history.json", "sparse.0.measure", _edit(lambda c: c["sparse"][0].pop("measure"))),
    ("train/history.json", "sparse.0.clean", _edit(lambda c: c["sparse"][0].update(clean_accuracy=c["sparse"][0].pop("clean")))),
    ("train/history.json", "validation.gained", _edit(lambda c: c["validation"].pop("gained"))),
    ("gates.json", "[0].", _text('[{"name": "x"}]')),
    ("gates.json", "[0]", _text('["x"]')),
    ("gates.json", "", _text('{"gates": []}')),
    ("manifest.json", "", _edit(lambda c: c["files"].update({"../outside": "0" * 64}))),
    ("manifest.json", "", _edit(lambda c: c["files"].update({"/etc/hostname": "0" * 64}))),
    ("manifest.json", "files.x", _edit(lambda c: c["files"].update({"x": 3}))),
    ("manifest.json", "lineage.0.seconds", _edit(lambda c: c["lineage"][0].update(seconds=True))),
    ("manifest.json", "tools", _edit(lambda c: c.update(versions=c.pop("tools")))),
    ("recipe.toml", "", _text("name = ")),
    ("target.toml", "", _text("a" * (2**20 + 1))),
]


@pytest.mark.parametrize(("name", "key", "damage"), DAMAGES, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(DAMAGES)])
def test_damage_is_one_sentence_that_names_the_file_and_the_key(
    tmp_path: Path, name: str, key: str, damage: Callable[[Path], None]
) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    damage(directory / name)
    with pytest.raises(InputError) as caught:
        write_report(directory)
    assert Path(name).name in str(caught.value)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert not (directory / "report.html").exists()


def test_a_clip_that_no_claim_has_is_refused(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    _edit(lambda c: c["property"].update(clip=[1.0, 0.0]))(directory / CERTIFICATE)
    with pytest.raises(InputError, match=r"certificate\.json"):
        gather(directory)


def test_directories_that_are_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no artifact directory"):
        gather(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no artifact"):
        gather(tmp_path)


def test_percentiles_follow_from_the_raw_samples_whatever_is_recorded(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    samples = [float(i) for i in range(100, 0, -1)]
    write(tmp_path / "profile" / "x.json", {"schema_version": 1, "packed": {"samples_ms": samples, "latency_ms_p50": 0.001, "runs": 7}})
    found = gather(tmp_path).latency["x.json"]
    assert (found.packed.p50, found.packed.p90, found.packed.p99) == (50.0, 90.0, 99.0)
    assert (found.ratio, found.block_ratios) == (None, ())
    write(tmp_path / "profile" / "x.json", {"packed": {"latency_ms_p50": 7.0, "latency_ms_p90": 7.0, "latency_ms_p99": 7.0}})
    with pytest.raises(InputError, match=r"x\.json is damaged: packed\.samples_ms: field required"):
        gather(tmp_path)


def test_a_changed_certificate_is_refused_to_all_but_those_who_report_on_it(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    path = directory / CERTIFICATE
    _edit(lambda c: c["data"].update(name="other"))(path)
    with pytest.raises(GateError, match="was changed after it was written"):
        read_certificate(path)
    assert "no longer fits" in read_certificate(path, changed="void").void
    assert gather(directory).verdict == "void"


def test_a_certificate_of_a_model_outside_is_not_followed(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    (tmp_path / "outside.onnx").write_bytes(b"nothing")
    for file in ("../outside.onnx", str(tmp_path / "outside.onnx")):
        write(directory / CERTIFICATE, certificate(claims([3, 3], 1), ["a", "b"], model={**MODEL, "file": file}))
        assert gather(directory).other_models == ()


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [path] * bool(path) + [leaf for key, item in inner for leaf in _leaves(item, (*path, key))]


STRANGE = [None, True, "<b>", -1, 1e308, 10**30, [], {}, [[]], {"a": {"b": 1}}, ""]


def _strange_values(directory: Path, step: int) -> dict[str, int]:
    """Puts strange values in every `step`-th place of every JSON file, one at a time, and counts what comes of it."""
    outcomes = {"shown": 0, "refused": 0}
    for file in sorted(directory.rglob("*.json")):
        original = file.read_text()
        places = [(path, strange) for path in _leaves(json.loads(original)) for strange in STRANGE]
        for path, strange in places[::step]:
            content = json.loads(original)
            place = content
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = strange
            file.write_text(json.dumps(content))
            try:
                assert "<b></" not in html(gather(directory))
                outcomes["shown"] += 1
            except InputError:
                outcomes["refused"] += 1
        file.write_text(original)
    return outcomes


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 41])
def test_any_value_anywhere_is_either_shown_or_one_input_error(tmp_path: Path, step: int) -> None:
    directory = make_artifact(tmp_path / "a", [2, 2], counterexamples=1)
    (directory / "manifest.json").rename(tmp_path / "manifest.json")  # its hashes would only hide what is changed
    outcomes = _strange_values(directory, step)
    assert min(outcomes.values()) > 10
