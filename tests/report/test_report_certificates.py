"""The rows of certificates: each from its own files, with its audit, its proofs, and why there is no C where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_artifact import CONTRACT, certificate, claims, latency, make_artifact, write, write_manifest
from test_report_page import render

from vsparse.errors import InputError
from vsparse.files import canonical_json, sha256_bytes
from vsparse.pipeline.figures import key_figures
from vsparse.stages.report import gather

NAMES = [str(i) for i in range(10)]


def searched(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Claims of which `count` certified ones were searched for."""
    left = count
    for row in rows:
        if row["verdict"] == "certified" and left:
            row.update(method="alpha-crown" if left % 2 else "branch-and-bound", proof="proofs.npz")
            left -= 1
    return rows


def put(directory: Path, name: str, file: str, seed: int, audit: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """Puts a further certificate into an artifact."""
    content = certificate(searched(claims([36] * 10, seed), 5), NAMES, contract={**CONTRACT, "name": name})
    content.update(model={"file": file, "sha256": "ab" * 32}, proofs_sha256="ef" * 32, proofs_bytes=4000, **more)
    hashed = {key: value for key, value in content.items() if key != "certificate_sha256"}
    hashed["claims"] = [{key: value for key, value in row.items() if key != "time_ms"} for row in content["claims"]]
    content["certificate_sha256"] = sha256_bytes(canonical_json(hashed))
    write(directory / "certificate" / name / "certificate.json", content)
    if audit is not None:
        write(directory / "certificate" / name / "audit.json", audit)
    return content


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An artifact with model.c and both further precisions."""
    directory = make_artifact(tmp_path / "a")
    passed = {"passed": True, "executions": 1234, "violations": 0}
    put(directory, "sequential", "model/model.fp32.onnx", 1, passed)
    put(directory, "fp16", "model/model.fp16.onnx", 5, {**passed, "executions": 777})
    put(directory, "int8", "model/model.int8.onnx", 6, passed)
    write(directory / "model" / "c_source.json", {"written": True, "reason": "", "constant_bytes": 5000, "static_bytes": 600})
    write(directory / "profile" / "precisions" / "int8.json", {"schema_version": 1, "packed": latency(3, 0.02)})
    write_manifest(directory)
    return directory


def test_each_certificate_has_its_row_with_its_own_numbers(whole: Path) -> None:
    page, facts, _ = render(whole)
    rows = {row["name"]: row for row in facts["certificates"]}
    assert list(rows) == ["sparse", "sequential", "fp16", "int8", "dense"]
    assert {name: row["model_file"] for name, row in rows.items()} == {
        "sparse": "model/model.fp32.onnx",
        "sequential": "model/model.c",
        "fp16": "model/model.fp16.onnx",
        "int8": "model/model.int8.onnx",
        "dense": "model/model.fp32.onnx",
    }
    for name in ("sequential", "fp16", "int8"):
        written = json.loads((whole / "certificate" / name / "certificate.json").read_text())["claims"]
        certified = [row for row in written if row["verdict"] == "certified"]
        assert rows[name]["samples"] == 360
        assert rows[name]["certified_share"] == len(certified) / 360
        assert rows[name]["certified_by"] == {
            method: count
            for method in ("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound")
            if (count := sum(row["method"] == method for row in certified))
        }
        assert rows[name]["proof_bytes_each"] == 4000 / 5
        assert rows[name]["contract"] == name
    assert (rows["fp16"]["audit_executions"], rows["int8"]["audit_executions"], rows["dense"]["audit_executions"]) == (777, 1234, None)
    assert rows["sequential"]["latency_ms_p50"] is None
    assert rows["int8"]["latency_ms_p50"] != rows["sparse"]["latency_ms_p50"]
    assert facts["verdict"] == "passed"
    others = "model/model.c (sequential), model/model.fp16.onnx (fp16), model/model.int8.onnx (int8) have certificates of their own"
    assert f"Only {others}, below." in page.text
    assert "777 executions, no violation" in page.text
    assert "800 bytes for each proof" in page.text
    assert "needs 5 kB of constants and 600 B of working memory" in page.text
    for place, row in enumerate(facts["certificates"]):
        assert page.facts[f"certificates.{place}.certified_share"] == str(row["certified_share"])


def test_key_figures_hold_every_contract(whole: Path) -> None:
    figures = key_figures(gather(whole))
    rows = {row.name: row for row in gather(whole).certificates}
    for name in ("sequential", "fp16", "int8"):
        assert figures[name]["certified_share"] == rows[name].certified_share
        assert figures[name]["audit_executions"] == rows[name].audit_executions
    assert "latency_ms_p50" not in figures["fp16"]


@pytest.mark.parametrize("name", ["sequential", "fp16", "int8"])
@pytest.mark.parametrize("how", ["audit", "violations", "void", "edited"])
def test_a_further_certificate_that_does_not_stand_voids_the_report(whole: Path, name: str, how: str) -> None:
    folder = whole / "certificate" / name
    content = json.loads((folder / "certificate.json").read_text())
    if how == "audit":
        write(folder / "audit.json", {"passed": False, "reason": "a logit is outside"})
    elif how == "violations":
        write(folder / "audit.json", {"passed": True, "violations": ["one", "two"]})
    elif how == "void":
        put(whole, name, content["model"]["file"], 3, {"passed": True, "violations": 0}, void="a logit is outside")
    else:
        content["claims"][0]["label"] = content["claims"][0]["predicted"] = 9
        write(folder / "certificate.json", content)
    write_manifest(whole)
    page, facts, _ = render(whole)
    assert facts["verdict"] == "void"
    assert len(facts["void_reasons"]) == 1
    assert f"under contract {name}" in facts["void_reasons"][0]
    assert {"audit": "a logit is outside", "violations": "2 violations", "void": "VOID", "edited": "VOID"}[how] in page.text


def test_why_there_is_no_c_and_why_c_was_not_audited(whole: Path) -> None:
    put(whole, "sequential", "model/model.fp32.onnx", 1, None, note="from fp32; not audited: no C compiler is on the path; install one")
    (whole / "certificate" / "sequential" / "audit.json").unlink()
    write_manifest(whole)
    page, facts, _ = render(whole)
    assert facts["verdict"] == "passed"
    assert "model/model.c, contract sequential: not audited: no C compiler is on the path; install one." in page.text
    (whole / "certificate" / "sequential" / "certificate.json").unlink()
    write(whole / "model" / "c_source.json", {"written": False, "reason": "the operator Tanh has no C form"})
    write_manifest(whole)
    page, facts, _ = render(whole)
    assert "There is no C source: the operator Tanh has no C form." in page.text
    assert "sequential" not in {row["name"] for row in facts["certificates"]}


def test_damaged_further_certificates_are_refused_by_name(whole: Path) -> None:
    path = whole / "certificate" / "int8" / "certificate.json"
    for text in ("", "[]", "{}", '{"claims": [1]}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"int8/certificate\.json"):
            gather(whole)
