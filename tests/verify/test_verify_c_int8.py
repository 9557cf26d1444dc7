"""The certificate of model.int8.c: claims of int8 that hold for it, and an audit that executes the compiled file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from vsparse.artifact.certificate import read_certificate, write_certificate
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import GateError, UnavailableError
from vsparse.graph.from_onnx import from_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export import write_onnx
from vsparse.stages.export.c_int8.stage import write_int8_c
from vsparse.stages.export.c_source import compile as compiling
from vsparse.stages.export.c_source import find_compiler
from vsparse.stages.export.c_source.stage import CRequest
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify import Certificate, certify
from vsparse.stages.verify.c_forms import INTEGER_C
from vsparse.stages.verify.sequential import audit_sequential, sequential_certificate


@pytest.fixture(autouse=True)
def compiler() -> str:
    try:
        return find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(digits_conv: Path, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    write_onnx(quantise(from_onnx(digits_conv), digits.inputs(np.arange(64))), path, 17, {})
    return path


@pytest.fixture(scope="module")
def certificate(model: Path, digits: Dataset) -> Certificate:
    return certify(model, digits, PerturbationSet(epsilon="0.06"), CONTRACTS["int8"], Verify(), samples=16)


@pytest.fixture
def source(model: Path, tmp_path: Path) -> Path:
    copy = tmp_path / model.name
    copy.write_bytes(model.read_bytes())
    assert write_int8_c(copy, "digits", CRequest("mine"))
    return tmp_path / "model.int8.c"


def test_certified_claims_are_taken_over_and_the_others_executed_again(
    model: Path, digits: Dataset, certificate: Certificate, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived = sequential_certificate(model, source, digits, certificate, INTEGER_C)
    assert derived.contract == CONTRACTS["int8"].as_dict()
    assert derived.summary.certified == certificate.summary.certified > 0
    assert derived.replay["runtime"] == "model.int8.c"
    write_certificate(tmp_path / "certificate.json", derived)
    assert read_certificate(tmp_path / "certificate.json").digest() == derived.digest() != certificate.digest()
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert sequential_certificate(model, source, digits, certificate, INTEGER_C).digest() == derived.digest()


def test_another_contract_says_nothing_about_it(model: Path, digits: Dataset, certificate: Certificate, source: Path) -> None:
    other = certificate.model_copy(update={"contract": CONTRACTS["fp32"].as_dict()})
    with pytest.raises(GateError, match=r"says nothing about model\.int8\.c"):
        sequential_certificate(model, source, digits, other, INTEGER_C)


def test_the_audit_executes_three_builds_and_passes(model: Path, digits: Dataset, certificate: Certificate, source: Path) -> None:
    result = audit_sequential(model, source, digits, certificate, samples=4, how=INTEGER_C)
    assert result.passed
    assert result.contract == "int8"
    assert 2 <= result.sessions <= 3
    assert result.values_checked > 0


@pytest.mark.parametrize(
    ("file", "pattern", "replacement"),
    [
        ("model.int8_weights.h", r"(n\d+_weight\[\d+\] VS_WORDS = \{\n)[-\d]+,", r"\g<1>127,"),
        ("model.int8_weights.h", r"(n\d+_bias\[\d+\] = \{\n)[-\d]+,", r"\g<1>99999,"),
        ("model.int8.c", r"value \+= 12582912\.0f;", "value += 12582912.5f;"),  # rounds some steps another way
    ],
)
def test_the_audit_notices_another_program(
    model: Path, digits: Dataset, certificate: Certificate, source: Path, file: str, pattern: str, replacement: str
) -> None:
    changed = source.with_name(file)
    text, count = re.subn(pattern, replacement, changed.read_text(), count=0 if file.endswith(".c") else 1)
    assert count
    changed.write_text(text.replace("0x4B400000", "0x4B400001") if file.endswith(".c") else text)
    result = audit_sequential(model, source, digits, certificate, samples=4, how=INTEGER_C)
    assert not result.passed
    assert result.shown
