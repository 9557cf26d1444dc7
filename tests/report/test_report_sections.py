"""Every section of the report, by a table: it is on the page of an artifact that has its data, and not on one that has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_report_page import Page

from report_artifact import CONTRACT, LIVE_INT8, PASSED, make_artifact, write_manifest
from vsparse.artifact.checks import Gate
from vsparse.artifact.choice import CHOICE, FormChoice
from vsparse.artifact.document import read_document, write_document, write_list
from vsparse.artifact.facts import gather
from vsparse.artifact.live import LIVE
from vsparse.artifact.models import CFootprint, CSourceRecord
from vsparse.stages.report import render
from vsparse.stages.report.sections import SECTIONS, ReportSection
from vsparse.target import load_target

CERTIFICATES, COUNTEREXAMPLES = ("certificate",), ("certificate/counterexamples.npz",)
EXACT = {key: "real" if value == "fp32" else value for key, value in CONTRACT.items()}


def whole(directory: Path) -> None:
    """Writes an artifact with everything in it."""
    make_artifact(directory)


def voided(directory: Path) -> None:
    """Writes an artifact whose audit found a violation."""
    make_artifact(directory)
    write_document(directory / "certificate" / "audit.json", PASSED.model_copy(update={"passed": False}))
    write_manifest(directory)


def in_exact_arithmetic(directory: Path) -> None:
    """Writes an artifact that is certified under the contract `real`."""
    make_artifact(directory, contract=EXACT)


def on_a_microcontroller(directory: Path) -> None:
    """Writes an artifact for a Cortex-M4F, whose C was compiled for it."""
    make_artifact(directory)
    (directory / "target.toml").write_text(load_target("cortex-m4f").to_toml())
    taken = {"flash_bytes": 42_086, "constant_bytes": 37_683, "code_bytes": 4_403, "ram_bytes": 1_434, "stack_bytes": 328}
    footprint = CFootprint(**taken, compiler="arm-none-eabi-gcc 12.2", options=("-mcpu=cortex-m4", "-O2"))
    sizes = {"constant_bytes": 45_676, "static_bytes": 2_608, "scalar_constant_bytes": 37_672, "scalar_static_bytes": 1_388}
    record = CSourceRecord(written=True, reason="", files=("model.c",), contract="sequential", footprint=footprint, **sizes)
    write_document(directory / "model" / "c_source.json", record)
    gates = [
        Gate(name="flash", wanted="at most 512 KiB, target cortex-m4f", got="41.1 KiB", passed=True),
        Gate(name="RAM", wanted="at most 1 KiB, gates.ram_kib", got="1.4 KiB", passed=False),
    ]
    write_list(directory / "gates.json", gates)
    write_manifest(directory)


@dataclass(frozen=True)
class Case:
    """Words of one section alone: its heading, and what it says of the data of an artifact that `present` writes.

    `without` names what is to be taken out of a whole artifact for the section to go; nothing, where a whole artifact has no such section;
    None where every artifact has it.
    """

    heading: str
    says: str
    without: tuple[str, ...] | None = None
    present: Callable[[Path], None] = field(default=whole)


# A new section has its line here.
CASES = {
    "void": Case("This certificate is void. Do not rely on it.", "The audit", (), voided),
    "exact": Case("Warning: proved for exact arithmetic, not for any device", "leaves rounding out", (), in_exact_arithmetic),
    "verdict": Case("Every gate passed", "latency ratio passed"),
    "measured": Case("What was measured, and where", "Clean accuracy is", (*CERTIFICATES, "train")),
    "is": Case("What is guaranteed", "of 360 test images, no change of the pixels by up to 0.05"),
    "key": Case("Sparse and dense, side by side", "Sparse: 360 test images", (*CERTIFICATES, "compress", "profile")),
    "gates": Case("Gates", "at most 0.5", ("gates.json",)),
    "memory": Case("Memory of the microcontroller", "512 KiB (datasheet) at most 512 KiB, target cortex-m4f", (), on_a_microcontroller),
    "forms": Case("Deployed forms: which one was chosen, and why", "slower than fp32: 1.30 times its time", ("choice.json",)),
    "certificates": Case("Certificates", "One certificate for each file", CERTIFICATES),
    "curve": Case("Accuracy against ε", "0.07", ("certificate/curve.json", "certificate/dense/curve.json")),
    "live": Case("What the device certifies by itself", "certifies 311 of 360 test images", ("certificate/live.json",)),
    "classes": Case("Class by class", "1: certified 88.9 %, robust 88.9 %, clean 94.4 %", CERTIFICATES),
    "methods": Case("What settled the images", "CROWN-IBP (one backward pass over interval bounds)6500", CERTIFICATES),
    "compression": Case("Compression, layer by layer", "conv2", ("compress",)),
    "latency": Case("Latency", "onnxruntime-fp32.json", ("profile",)),
    "training": Case("Training", "Trained on boxes.", ("train",)),
    "gallery": Case("Counterexamples", "Test image 1: 1 taken for 2, largest change 0.05", COUNTEREXAMPLES),
    "contract": Case("The numeric contract: fp32", "kept in 32-bit floating point", CERTIFICATES),
    "checks": Case("Cross-check and audit", "auto_LiRPA 0.3"),
    "provenance": Case("Provenance", "2.13.0"),
    "yourself": Case("Check it yourself", "vsparse check"),
    "glossary": Case("Glossary", "Fraction of the weights that are left."),
}


def page_of(directory: Path, section: ReportSection, monkeypatch: pytest.MonkeyPatch) -> Page:
    """Returns the page with this section and, as a page has one that is listed, the last."""
    monkeypatch.setattr(render, "SECTIONS", tuple(dict.fromkeys((section, SECTIONS[-1]))))
    return Page(render.html(gather(directory)))


def shows(page: Page, case: Case) -> tuple[bool, bool]:
    """Whether a page has the heading, and whether it says what the section says."""
    return case.heading in page.headings, case.says in page.text


def test_every_section_has_a_case() -> None:
    assert list(CASES) == [section.id for section in SECTIONS], "a section of the report needs its line in CASES"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.id)
def test_a_section_is_there_with_its_data_and_not_without(tmp_path: Path, section: ReportSection, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[section.id]
    case.present(tmp_path / "present")
    page = page_of(tmp_path / "present", section, monkeypatch)
    assert shows(page, case) == (True, True)
    if section.title:
        assert ("a", "href", f"#{section.id}") in page.references
        assert section.id in page.ids
    make_artifact(tmp_path / "absent")
    for name in case.without or ():
        path = tmp_path / "absent" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_manifest(tmp_path / "absent")
    if case.without is None:
        # What every artifact has, an artifact of a manifest alone has.
        (tmp_path / "bare").mkdir()
        write_manifest(tmp_path / "bare")
        assert section.there(gather(tmp_path / "bare"))
        assert page_of(tmp_path / "bare", section, monkeypatch).text
        return
    absent = page_of(tmp_path / "absent", section, monkeypatch)
    assert not section.there(gather(tmp_path / "absent"))
    assert shows(absent, case) == (False, False)
    assert section is SECTIONS[-1] or section.id not in absent.ids


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("int8-c", "certifies 290 of 360 test images, one by one, as it would a frame of your camera; of these, 288 with the right class"),
        ("sequential", "certifies 311 of 360 test images"),
    ],
)
def test_what_is_certified_live_in_both_forms_is_shown_the_chosen_one_first(
    chosen: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_artifact(tmp_path)
    write_document(tmp_path / LIVE, LIVE_INT8)
    write_document(tmp_path / CHOICE, read_document(FormChoice, tmp_path / CHOICE).model_copy(update={"chosen": chosen}))
    write_manifest(tmp_path)
    text = page_of(tmp_path, next(one for one in SECTIONS if one.id == "live"), monkeypatch).text
    assert says in text
    name = "model.int8.c, in 8-bit integers" if chosen == "int8-c" else "model.c, in float32"
    assert f"That is {name}, the form in C that this build chose" in text
    for one in ("under the contract int8: 290 test images certified", "under the contract sequential: 311", "2.90 times one inference"):
        assert one in text
