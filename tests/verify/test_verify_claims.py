"""Certificates on disk: what was written is what is read, and what was changed is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verify_nets import dataset_of, dense_graph

from vsparse.contract import CONTRACTS
from vsparse.errors import GateError, InputError, VsparseError
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.verify import Certificate, certify, read_certificate, read_counterexamples, write_certificate


@pytest.fixture
def certificate(difference: Path) -> Certificate:
    """One certified, one falsified by attack, one wrong, one unknown."""
    data = dataset_of([[0.9, 0.1], [0.6, 0.5], [0.1, 0.9], [0.5, 0.25]], [0, 0, 0, 0], 2)
    result = certify(difference, data, PerturbationSet(epsilon="1/8"), CONTRACTS["fp32"], Verify(attack_restarts=1))
    assert [claim.verdict for claim in result.claims] == ["certified", "falsified", "falsified", "unknown"]
    return result


@pytest.fixture
def path(certificate: Certificate, tmp_path: Path) -> Path:
    """The certificate on disk."""
    write_certificate(tmp_path / "certificate.json", certificate)
    return tmp_path / "certificate.json"


def test_what_is_written_is_read(certificate: Certificate, path: Path) -> None:
    again = read_certificate(path)
    assert again.claims == certificate.claims
    assert again.digest() == certificate.digest() == json.loads(path.read_text())["certificate_sha256"]
    found, kept = read_counterexamples(path.with_name("counterexamples.npz")), certificate.counterexamples
    assert kept is not None
    assert found.ids.tolist() == [1, 2]
    assert found.sha256() == kept.sha256() == again.counterexamples_sha256


def test_a_certificate_without_counterexamples(difference: Path, tmp_path: Path) -> None:
    result = certify(difference, dataset_of([[0.9, 0.1]], [0], 2), PerturbationSet(epsilon="0"), CONTRACTS["fp32"], Verify())
    write_certificate(tmp_path / "certificate.json", result)
    found = read_counterexamples(tmp_path / "counterexamples.npz")
    assert len(found) == 0
    assert found.sha256() == read_certificate(tmp_path / "certificate.json").counterexamples_sha256


def test_every_claim_stands_alone(path: Path) -> None:
    for claim in json.loads(path.read_text())["claims"]:
        wanted = {
            "id",
            "input_sha256",
            "label",
            "predicted",
            "property",
            "contract",
            "model",
            "verdict",
            "margin_lower",
            "method",
            "time_ms",
            "proof",
        }
        assert set(claim) == wanted
        assert claim["property"] == {"norm": "linf", "epsilon": "1/8", "clip": [0.0, 1.0]}
        assert claim["contract"] == "fp32"
        assert len(claim["model"]["sha256"]) == 64


def test_times_are_not_part_of_the_hash_and_all_else_is(path: Path) -> None:
    content = json.loads(path.read_text())
    content["claims"][0]["time_ms"] = 123.0
    path.write_text(json.dumps(content))
    read_certificate(path)
    content["claims"][0]["margin_lower"] += 0.001
    path.write_text(json.dumps(content))
    with pytest.raises(GateError, match="was changed"):
        read_certificate(path)


def _certify_the_falsified(content: dict[str, Any]) -> None:
    content["claims"][1] |= {"verdict": "certified", "margin_lower": 1.0, "method": "interval", "proof": "derivable"}


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "verdict": _certify_the_falsified,
    "margin": lambda c: c["claims"][0].update(margin_lower=0.0),
    "no margin": lambda c: c["claims"][0].update(margin_lower=None),
    "label": lambda c: c["claims"][0].update(label=1),
    "model": lambda c: c["claims"][0]["model"].update(sha256="0" * 64),
    "contract of a claim": lambda c: c["claims"][0].update(contract="real"),
    "contract": lambda c: c["contract"].update(accumulate="fp64"),
    "epsilon": lambda c: c["property"].update(epsilon="1/4"),
    "bad epsilon": lambda c: c["property"].update(epsilon="much"),
    "removed claim": lambda c: c["claims"].pop(),
    "no claims": lambda c: c["claims"].clear(),
    "claim twice": lambda c: c["claims"].append(c["claims"][0]),
    "summary": lambda c: c["summary"].update(certified=4),
    "no hash": lambda c: c.pop("certificate_sha256"),
    "hash is a number": lambda c: c.update(certificate_sha256=1),
    "schema": lambda c: c.update(schema_version=2),
    "unknown key": lambda c: c.update(trust="me"),
    "claims are text": lambda c: c.update(claims="certified"),
    "counterexamples inside": lambda c: c.update(counterexamples={"ids": []}),
    "void": lambda c: c.update(void="because"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_certificates_are_refused(path: Path, edit: str) -> None:
    content = json.loads(path.read_text())
    EDITS[edit](content)
    path.write_text(json.dumps(content))
    with pytest.raises((InputError, GateError), match=r"certificate\.json"):
        read_certificate(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"claims": NaN}', '{"a": 1e999}', "[" * 100_000, "\udcff"])
def test_what_is_no_certificate_is_refused(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError):
        read_certificate(path)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.just({})
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_certificate_with_one_thing_changed_never_ends_in_another_exception(path: Path, data: st.DataObject) -> None:
    before = path.read_bytes()
    content = json.loads(before)
    place: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    old, place[key] = place[key], data.draw(JUNK)
    try:
        path.write_text(json.dumps(content))
        read_certificate(path)
        assert key == "time_ms" or old == place[key]
    except VsparseError:
        pass
    finally:
        path.write_bytes(before)


def test_damaged_counterexamples_are_refused(path: Path) -> None:
    place = path.with_name("counterexamples.npz")
    with np.load(place) as file:
        arrays = {name: file[name] for name in file.files}
    for change in ({"ids": arrays["ids"][:1]}, {"inputs": arrays["inputs"].astype(np.float64)}, {"labels": np.array(["0", "0"])}):
        np.savez(place, **{**arrays, **change})
        with pytest.raises(InputError):
            read_counterexamples(place)
    place.write_bytes(b"PK")
    with pytest.raises(InputError):
        read_counterexamples(place)
    place.unlink()
    with pytest.raises(InputError, match="not there"):
        read_counterexamples(place)


def test_a_void_certificate_says_why(certificate: Certificate, path: Path) -> None:
    write_certificate(path, certificate.voided("the audit found a violation"))
    again = read_certificate(path)
    assert again.void == "the audit found a violation"
    assert again.digest() != certificate.digest()


def test_more_classes_than_names(write: Callable[..., Path]) -> None:
    graph = dense_graph(2, ([[1, 0], [0, 1], [0, 0]], [0, 0, -1]))
    result = certify(write(graph), dataset_of([[0.9, 0.1]], [0], 2), PerturbationSet(epsilon="0"), CONTRACTS["fp32"], Verify())
    assert [row.name for row in result.summary.classes] == ["0", "1"]
