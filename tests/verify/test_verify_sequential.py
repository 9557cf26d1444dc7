"""The certificate of model.c: what it takes over, what it does not, and an audit that executes the compiled file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from verify_nets import dataset_of, dense_graph

from vsparse.artifact.certificate import read_certificate, write_certificate
from vsparse.artifact.counterexamples import read_counterexamples
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import GateError, UnavailableError
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export.c_source import compile as compiling
from vsparse.stages.export.c_source import find_compiler
from vsparse.stages.export.c_source.stage import write_c
from vsparse.stages.verify import Certificate, certify
from vsparse.stages.verify.sequential import audit_sequential, sequential_certificate

FP32 = CONTRACTS["fp32"]


@pytest.fixture(autouse=True)
def compiler() -> str:
    try:
        return find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def source(digits_conv: Path, tmp_path: Path) -> Path:
    """model.c, beside a copy of its ONNX file."""
    shutil.copyfile(digits_conv, tmp_path / "model.fp32.onnx")
    assert write_c(tmp_path / "model.fp32.onnx", "digits")
    return tmp_path / "model.c"


@pytest.fixture
def certificate(digits_conv: Path, digits: Dataset) -> Certificate:
    """The first 24 digits at 0.06: some certified, some falsified."""
    return certify(digits_conv, digits, PerturbationSet(epsilon="0.06"), FP32, Verify(), samples=24)


def test_certified_claims_are_taken_over_and_the_others_executed_again(
    digits_conv: Path, digits: Dataset, certificate: Certificate, source: Path, tmp_path: Path
) -> None:
    derived = sequential_certificate(digits_conv, source, digits, certificate)
    assert derived.contract == CONTRACTS["sequential"].as_dict()
    assert {claim.contract for claim in derived.claims} == {"sequential"}
    assert derived.summary.certified == certificate.summary.certified > 0
    assert derived.summary.falsified > 0
    write_certificate(tmp_path / "certificate.json", derived)
    again = read_certificate(tmp_path / "certificate.json")  # it agrees with itself and with its counterexamples
    assert again.digest() == derived.digest() != certificate.digest()
    kept = read_counterexamples(tmp_path / "counterexamples.npz")
    assert kept.sha256() == again.counterexamples_sha256
    assert sorted(kept.ids.tolist()) == [claim.id for claim in again.claims if claim.verdict == "falsified"]
    assert (kept.predictions != kept.labels).all()


def test_without_a_compiler_the_same_certificate_comes_from_numpy(
    digits_conv: Path, digits: Dataset, certificate: Certificate, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = sequential_certificate(digits_conv, source, digits, certificate)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert sequential_certificate(digits_conv, source, digits, certificate).digest() == compiled.digest()
    with pytest.raises(UnavailableError):
        audit_sequential(digits_conv, source, digits, compiled)


def test_a_counterexample_that_some_execution_classifies_right_is_none(write: Callable[..., Path]) -> None:
    """Logits 3/4 and 3/4 + 2^-26 are a tie once rounded, and ONNX Runtime takes the first; exactly, the second is larger."""
    path = write(dense_graph(2, ([[1, 0], [0, 1]], [0, 2.0**-26])))
    data = dataset_of([[0.75, 0.75], [0.75, 0.25]], [1, 1], 2)
    honest = certify(path, data, PerturbationSet(epsilon="0.01"), FP32, Verify())
    assert [claim.verdict for claim in honest.claims] == ["falsified", "falsified"]
    assert write_c(path, "tie")
    derived = sequential_certificate(path, path.with_name("model.c"), data, honest)
    assert [claim.verdict for claim in derived.claims] == ["unknown", "falsified"]
    assert derived.claims[0].method == "none"
    assert derived.claims[0].proof is None
    assert derived.counterexamples is not None
    assert derived.counterexamples.ids.tolist() == [1]


def test_only_a_certificate_under_fp32_about_this_file_says_something_about_model_c(
    digits_conv: Path, digits: Dataset, certificate: Certificate, source: Path, difference: Path
) -> None:
    other = certificate.model_copy(update={"contract": CONTRACTS["real"].as_dict()})
    with pytest.raises(GateError, match="says nothing about"):
        sequential_certificate(digits_conv, source, digits, other)
    with pytest.raises(GateError, match="another hash"):
        sequential_certificate(difference, source, digits, certificate)
    with pytest.raises(GateError, match="another hash"):
        audit_sequential(difference, source, digits, certificate)


def test_the_audit_executes_three_builds_and_passes(digits_conv: Path, digits: Dataset, certificate: Certificate, source: Path) -> None:
    derived = sequential_certificate(digits_conv, source, digits, certificate)
    result = audit_sequential(digits_conv, source, digits, derived, samples=4)
    assert result.passed
    assert result.contract == "sequential"
    assert 2 <= result.sessions <= 3
    assert result.logits_checked == result.sessions * result.points * 10
    assert result.values_checked > 0


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "words"),
    [
        # Terms from the last to the first: inside the bound of any order, but not the stated one.
        (
            "model.c",
            r"for \(int k = 0; k < terms; k\+\+, weight \+= (\w+)\)",
            r"weight += (terms - 1L) * \1; for (int k = terms; k-- > 0; weight -= \1)",
            "stated order",
        ),
        # A weight that is not the certified one.
        ("model_weights.h", r"(n\d+_blocks\[\d+\] VS_ALIGNED = \{\n)[^,]+,", r"\g<1>9.0f,", "outside its enclosure|misclassified"),
    ],
)
def test_the_audit_notices_another_program(
    digits_conv: Path, digits: Dataset, certificate: Certificate, source: Path, file: str, pattern: str, replacement: str, words: str
) -> None:
    changed = source.with_name(file)
    text, count = re.subn(pattern, replacement, changed.read_text())
    assert count
    changed.write_text(text)
    result = audit_sequential(digits_conv, source, digits, certificate, samples=4)
    assert not result.passed
    assert re.search(words, " ".join(result.shown))


def test_the_audit_notices_a_false_certificate(difference: Path) -> None:
    data = dataset_of(np.array([[0.75, 0.25]]), [0], 2)
    small = certify(difference, data, PerturbationSet(epsilon="0.2"), FP32, Verify())
    stated = small.property.with_epsilon("0.3")
    forged = small.model_copy(update={"property": stated, "claims": (small.claims[0].model_copy(update={"property": stated}),)})
    assert write_c(difference, "difference")
    assert "misclassified" in audit_sequential(difference, difference.with_name("model.c"), data, forged).reason
