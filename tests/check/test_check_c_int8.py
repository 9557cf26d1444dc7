"""What the checker knows of model.int8.c: its files need a certificate, about the quantised file, under int8 alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsparse_check.claims import CertificateCheck
from vsparse_check.contracts import CONTRACTS
from vsparse_check.layout import CERTIFICATES, check_layout
from vsparse_check.limits import ResourceBudget
from vsparse_check.records import CertificateFiles, CertificateRecord
from vsparse_check.refusal import NotConfirmed
from vsparse_check.wording import line_of

FOLDER = "certificate/int8/c"


@pytest.mark.parametrize("name", ["model/model.int8.c", "model/model.int8.h", "model/model.int8_weights.h"])
def test_each_of_its_files_needs_the_certificate(name: str) -> None:
    files = {"certificate/certificate.json", "certificate/int8/certificate.json", name}
    with pytest.raises(NotConfirmed, match=f"{name} is there without {FOLDER}"):
        check_layout(files)
    check_layout(files | {f"{FOLDER}/certificate.json"})


def test_the_line_names_the_c_and_the_file_that_it_was_made_from() -> None:
    line = line_of(CertificateRecord(FOLDER, model=CERTIFICATES[FOLDER], contract="int8", norm="linf", epsilon="0.1"))
    assert "model/model.int8.c (from model/model.int8.onnx)" in line


@pytest.mark.parametrize("contract", sorted(CONTRACTS))
def test_it_is_certified_under_int8_alone(contract: str, tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path, tmp_path / "model.int8.onnx", FOLDER, CERTIFICATES[FOLDER])
    found = CertificateCheck(files, ResourceBudget(), None)
    found.content = {"contract": CONTRACTS[contract]}
    found.claimed = type("Region", (), {"epsilon": 1, "brightness": 0, "contrast": 0})()
    if contract == "int8":
        found._check_statement()
        return
    with pytest.raises(NotConfirmed, match="not the one of the C source: int8"):
        found._check_statement()
