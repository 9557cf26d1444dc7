"""The command: exit codes, JSON, and that nothing of the toolchain is imported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from check_artifacts import build, sign

import vsparse_check
from vsparse_check.__main__ import run
from vsparse_check.records import CertificateRecord
from vsparse_check.wording import region_of

FOLDER = Path(vsparse_check.__file__).parent


def test_the_checker_imports_numpy_and_onnx_only():
    program = "import sys, vsparse_check.__main__; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "vsparse_check" in found.stdout.split()
    assert not {"vsparse", "torch", "onnxruntime", "pydantic"} & set(found.stdout.split())
    for path in FOLDER.glob("*.py"):
        assert not re.search(r"^\s*(from|import) (vsparse\b|torch)", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("rules", ["fp32", "real"])
def test_a_sound_artifact_is_confirmed(tmp_path, capsys, kind, rules):
    build(tmp_path, kind, epsilon="1/50", rules=rules)
    assert run([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("confirmed: ")
    assert run([str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["confirmed"] == found["certified"] > 0


@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
def test_each_method_is_derived(tmp_path, method):
    build(tmp_path, "residual", epsilon="0.005", methods=(method,))
    content = json.loads((tmp_path / "certificate" / "certificate.json").read_text())
    assert {claim["method"] for claim in content["claims"] if claim["verdict"] == "certified"} == {method}
    assert vsparse_check.check(tmp_path).passed


def test_a_changed_artifact_ends_with_one_and_no_artifact_with_two(tmp_path, capsys):
    artifact = build(tmp_path / "a", epsilon="0.01", count=4)
    path = artifact / "certificate" / "certificate.json"
    path.write_text(path.read_text().replace('"certified"', '"unknown"', 1))
    assert run([str(sign(artifact))]) == 1
    assert capsys.readouterr().out.startswith("refuted")
    assert run([str(tmp_path / "nothing")]) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert run([]) == 2


def test_an_artifact_without_certified_claims_confirms_nothing(tmp_path):
    build(tmp_path, "residual", epsilon="0.9", count=3)
    found = vsparse_check.check(tmp_path)
    assert (found.status, found.verdict, found.certified) == (1, "cannot be checked", 0)
    assert "nothing is claimed" in found.sentence


def without_certificate(folder: Path) -> Path:
    """The same artifact as `export` leaves it without data: models alone."""
    build(folder, epsilon="0.01", count=4)
    shutil.rmtree(folder / "certificate")
    for path in (folder / "device", folder / "profile", folder / "train", folder / "compress"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob("*.json"), *folder.glob("report.*")]:
        path.unlink()
    return sign(folder)


def test_an_artifact_without_a_certificate_is_called_so_and_never_ends_with_zero(tmp_path, capsys):
    artifact = without_certificate(tmp_path / "a")
    assert run([str(artifact)]) == 1
    told = capsys.readouterr().out
    assert told.startswith("no certificate: ")
    assert "refuted" not in told
    assert run([str(artifact), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["passed"], found["certificates"]) == ("no certificate", False, [])
    (artifact / "model" / "model.fp32.onnx").write_bytes(b"")
    assert run([str(artifact)]) == 1
    assert capsys.readouterr().out.startswith("refuted")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("report.json", {"sparse": {"certified_share": 1.0}}, 'states "sparse" of a certificate'),
        ("report.json", {"certified_ids": {"certificate": [0, 1]}}, 'states "certified_ids"'),
        ("gates.json", [{"name": "certified accuracy", "passed": True}], "judges certified accuracy"),
        ("gates.json", [{"name": "certified accuracy", "passed": False}], "judges certified accuracy"),
        ("device/manifest.json", {"certificate_sha256": "0" * 64}, "names a certificate"),
        ("device/manifest.json", {"models": [{"certificate_sha256": "0" * 64}]}, "names a certificate"),
        ("gates.json", [None], "is not of its format"),
    ],
)
def test_a_certificate_that_was_taken_out_is_refuted(tmp_path, name, content, words):
    artifact = without_certificate(tmp_path / "a")
    (artifact / name).parent.mkdir(exist_ok=True)
    (artifact / name).write_text(json.dumps(content))
    found = vsparse_check.check(sign(artifact))
    assert (found.verdict, words in found.problem) == ("refuted", True), found.problem


def test_a_model_that_carries_the_hash_of_a_missing_certificate_is_refuted(tmp_path):
    artifact = without_certificate(tmp_path / "a")
    model = onnx.load(artifact / "model" / "model.fp32.onnx")
    onnx.helper.set_model_props(model, {"vsparse.certificate": "0" * 64})
    onnx.save(model, artifact / "model" / "model.fp32.onnx")
    found = vsparse_check.check(sign(artifact))
    assert (found.verdict, "carries the hash" in found.problem) == ("refuted", True)


def test_a_narrow_data_range_is_said() -> None:
    """It cuts off most of a ball, and the claims would read like those about all of it."""
    record = CertificateRecord("certificate", model="model/model.fp32.onnx", norm="linf", epsilon="0.3")
    assert region_of(record) == "linf epsilon 0.3"
    assert region_of(record._replace(clip=(0.0, 0.5))) == "linf epsilon 0.3, inputs from 0 to 0.5 alone"


def test_how_large_the_factors_of_features_are_is_said() -> None:
    """Tiny ones make nothing of a large epsilon."""
    record = CertificateRecord("certificate", model="model/model.fp32.onnx", norm="linf", epsilon="9", scales=("1e-24", "0", "1/16"))
    assert region_of(record) == "linf epsilon 9 times factors of 1e-24 to 1/16 stated for each of 3 inputs (1 may not change)"
    same = record._replace(scales=("1/16", "0.0625"))
    assert region_of(same) == "linf epsilon 9 times a factor of 1/16 stated for each of 2 inputs"
