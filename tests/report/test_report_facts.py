"""Reading an artifact: counts from claims, damage refused in one sentence, arrays read without trust."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_artifact import certificate, claims, make_artifact, write

from vsparse.errors import InputError
from vsparse.stages.report import gather, write_report
from vsparse.stages.report.gallery import read_gallery
from vsparse.stages.report.reading import Part, load_arrays, load_json
from vsparse.stages.report.render import html
from vsparse.stages.report.wording import milliseconds, share, size

RECORDED = ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99")


def small(label: int, predicted: int, verdict: str, number: int) -> dict[str, Any]:
    margin = 0.5 if verdict == "certified" else None
    return {
        "id": number,
        "label": label,
        "predicted": predicted,
        "verdict": verdict,
        "method": "crown",
        "margin_lower": margin,
        "time_ms": 2.0,
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
    assert (found.samples, found.correct, found.withstood, found.certified, found.falsified, found.unknown) == (8, 5, 4, 3, 1, 1)
    assert (found.clean_share, found.attacked_share, found.certified_share) == (5 / 8, 4 / 8, 3 / 8)
    assert [(row.name, row.samples, row.correct, row.withstood, row.certified) for row in found.classes] == [
        ("a", 4, 2, 2, 1),
        ("b", 0, 0, 0, 0),
        ("c", 3, 2, 1, 1),
        ("3", 1, 1, 1, 1),
    ]
    assert [(row.name, row.certified, row.falsified, row.unknown, row.time_ms_total) for row in found.methods] == [("crown", 3, 2, 3, 16.0)]


def test_hash_is_the_one_that_certificates_are_written_with(tmp_path: Path) -> None:
    from vsparse.artifact.certificate import Certificate, summarise, write_certificate

    content = certificate(claims([6, 6], 4), ["a", "b"])
    content.pop("certificate_sha256")
    shared = {"property": content["property"], "contract": "fp32", "model": content["model"]}
    content["claims"] = [{**row, **shared} for row in content["claims"]]
    content["data"]["samples"] = 12
    from vsparse.artifact.certificate import Claim

    summary = summarise([Claim.model_validate(row) for row in content["claims"]], ["a", "b"])
    rest = {"settings": {}, "replay": {}, "derivations": {}, "counterexamples_sha256": "0" * 64}
    whole = Certificate.model_validate({**content, **rest, "summary": summary})
    path = tmp_path / "certificate" / "certificate.json"
    write_certificate(path, whole)
    found = gather(tmp_path).sparse
    assert found is not None
    assert found.void_reason == ""
    assert found.clean_share == summary.clean_accuracy
    assert found.attacked_share == summary.attacked_accuracy
    assert found.certified_share == summary.certified_accuracy
    write_certificate(path, whole.voided("a test"))
    assert gather(tmp_path).verdict == "void"


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def _text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


CERTIFICATE = "certificate/certificate.json"
DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    (CERTIFICATE, _text("")),
    (CERTIFICATE, _text("[]")),
    (CERTIFICATE, _text("{}")),
    (CERTIFICATE, _text("[" * 100_000)),
    (CERTIFICATE, lambda path: path.write_bytes(b"\xff\xfe{}") and None),
    (CERTIFICATE, _edit(lambda c: c.update(claims=[]))),
    (CERTIFICATE, _edit(lambda c: c["claims"].append(c["claims"][0]))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(verdict="safe"))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(label="0"))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(label=-1))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(verdict="certified", margin_lower=0.0, predicted=0, label=0))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(verdict="certified", margin_lower=None, predicted=0, label=0))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(verdict="certified", margin_lower=1.0, predicted=1, label=0))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(margin_lower=float("nan")))),
    (CERTIFICATE, _edit(lambda c: c["claims"][0].update(time_ms=float("inf")))),
    (CERTIFICATE, lambda path: path.write_text(path.read_text().replace('"time_ms": ', '"time_ms": 1e999, "x": ', 1)) and None),
    (CERTIFICATE, _edit(lambda c: c["property"].update(epsilon="a lot"))),
    (CERTIFICATE, _edit(lambda c: c["property"].update(clip=[1.0, 0.0]))),
    (CERTIFICATE, _edit(lambda c: c.pop("model"))),
    (CERTIFICATE, _edit(lambda c: c.update(contract=7))),
    ("certificate/curve.json", _edit(lambda c: c["sparse"][0].update(certified_accuracy=1.5))),
    ("certificate/curve.json", _edit(lambda c: c["sparse"][0].pop("epsilon_value"))),
    ("certificate/curve.json", _edit(lambda c: c["sparse"].append(3))),
    ("certificate/counterexamples.npz", _text("no zip")),
    ("certificate/audit.json", _edit(lambda c: c.update(violations="none"))),
    ("certificate/audit.json", _edit(lambda c: c.update(violations=-1))),
    ("compress/layers.json", _edit(lambda c: c["rows"][0].update(weights_before=-5))),
    ("compress/layers.json", _edit(lambda c: c["rows"][0].update(weights_before=1.5))),
    ("profile/onnxruntime-fp32.json", _edit(lambda c: c["dense"].update(samples_ms=[]))),
    ("profile/onnxruntime-fp32.json", _edit(lambda c: c["dense"].update(samples_ms=[-1.0]))),
    ("profile/onnxruntime-fp32.json", _edit(lambda c: c["dense"].update(samples_ms=["1"]))),
    ("train/history.json", _edit(lambda c: c["sparse"][0].update(loss="low"))),
    ("gates.json", _text('[{"name": "x"}]')),
    ("gates.json", _text('["x"]')),
    ("manifest.json", _edit(lambda c: c["files"].update({"../outside": "0" * 64}))),
    ("manifest.json", _edit(lambda c: c["files"].update({"/etc/hostname": "0" * 64}))),
    ("manifest.json", _edit(lambda c: c["files"].update({"x": 3}))),
    ("manifest.json", _edit(lambda c: c["lineage"][0].update(seconds=True))),
    ("recipe.toml", _text("name = ")),
    ("target.toml", _text("a" * (2**20 + 1))),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(DAMAGES)])
def test_damage_is_one_sentence_that_names_the_file(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    directory = make_artifact(tmp_path / "a", [3, 3])
    damage(directory / name)
    with pytest.raises(InputError) as caught:
        write_report(directory)
    assert Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert not (directory / "report.html").exists()


def test_directories_that_are_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no artifact directory"):
        gather(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no artifact"):
        gather(tmp_path)


def _npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_arrays_are_read_without_trust(tmp_path: Path) -> None:
    promise = _npy(np.zeros(4)).replace(b"(4,)", b"(4000000000000,)".ljust(4))
    refused = {
        "object": _npy(np.array([{"a": 1}], dtype=object)),
        "text": _npy(np.array(["a"])),
        "nan": _npy(np.array([np.nan])),
        "short": _npy(np.zeros(100))[:-8],
        "promise": promise,
        "nonsense": b"\x93NUMPY\x01\x00\x02\x00{}",
        "empty": b"",
    }
    for name, content in refused.items():
        with pytest.raises(InputError, match=name):
            load_arrays(_npz(tmp_path / f"{name}.npz", {"x.npy": content}))
    found = load_arrays(_npz(tmp_path / "good.npz", {"x.npy": _npy(np.arange(3))}))
    assert found["x"].tolist() == [0, 1, 2]


def test_gallery_takes_originals_from_the_inputs_by_id_and_leaves_out_the_misclassified(tmp_path: Path) -> None:
    folder = tmp_path / "certificate"
    folder.mkdir()
    inputs = np.linspace(0, 1, 3 * 4, dtype=np.float32).reshape(3, 1, 2, 2)
    changed = inputs[[2, 0]].copy()
    changed[0, 0, 0, 0] -= 0.25
    np.savez(folder / "counterexamples.npz", ids=np.array([12, 10]), inputs=changed, labels=np.array([1, 0]), predictions=np.array([0, 1]))
    np.savez(folder / "inputs.npz", ids=np.array([10, 11, 12]), inputs=inputs)
    found = read_gallery(tmp_path, ["a", "b"], 0.25, frozenset({10}))
    assert found is not None
    assert (found.total, found.magnification, len(found.pictures)) == (1, 2.0, 1)
    assert (found.pictures[0].id, found.pictures[0].label, found.pictures[0].predicted) == (12, "b", "a")
    assert found.pictures[0].largest_change == pytest.approx(0.25)
    assert found.pictures[0].difference_png.startswith("data:image/png;base64,")


def test_gallery_refuses_arrays_of_different_lengths(tmp_path: Path) -> None:
    (tmp_path / "certificate").mkdir()
    np.savez(tmp_path / "certificate" / "counterexamples.npz", ids=np.arange(3), inputs=np.zeros((2, 1, 4, 4)))
    with pytest.raises(InputError, match="different lengths"):
        read_gallery(tmp_path, [], 0.1)


def test_percentiles_follow_from_the_raw_samples_whatever_is_recorded(tmp_path: Path) -> None:
    samples = [float(i) for i in np.random.default_rng(0).permutation(100) + 1]
    write(tmp_path / "manifest.json", {})
    write(
        tmp_path / "profile" / "x.json",
        {"packed": {"samples_ms": samples, "latency_ms_p50": 0.001}, "dense": {**dict.fromkeys(RECORDED, 7.0)}},
    )
    found = gather(tmp_path).latency[0]
    assert found.sparse is not None
    assert found.dense is not None
    assert (found.sparse.latency_ms_p50, found.sparse.latency_ms_p90, found.sparse.latency_ms_p99) == (50.0, 90.0, 99.0)
    assert found.dense.latency_ms_p99 == 7.0
    assert found.ratio_p50 == 50 / 7


def test_rounded_shares_never_claim_all_or_none(tmp_path: Path) -> None:
    assert share(1.0) == "100 %"
    assert share(0.9999) == "> 99.9 %"
    assert share(0.0) == "0 %"
    assert share(0.0001) == "< 0.1 %"
    assert share(0.9312) == "93.1 %"
    assert (size(812), size(24_600), size(1_320_000)) == ("812 B", "24.6 kB", "1.32 MB")
    assert (milliseconds(0.1234), milliseconds(999.6), milliseconds(180_000)) == ("0.123 ms", "1 s", "3.0 min")


def test_numbers_are_no_bools_and_must_be_finite(tmp_path: Path) -> None:
    part = Part({"a": True, "b": 10**400, "c": "1"}, tmp_path, "")
    for name in ("a", "b", "c"):
        with pytest.raises(InputError):
            part.number(name)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_json(tmp_path / "x.json")


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
