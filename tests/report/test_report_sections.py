"""Every section of the report, by a table: it is on the page of an artifact that has its data, and not on one that has none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from test_report_page import Page

from report_artifact import CONTRACT, LIVE_INT8, PASSED, make_artifact, write_manifest
from vsparse.artifact.checks import Gate
from vsparse.artifact.choice import CHOICE, FormChoice
from vsparse.artifact.device import DEVICE_RESULTS, DeviceResults, LayerTime
from vsparse.artifact.document import read_document, write_document, write_list
from vsparse.artifact.facts import gather
from vsparse.artifact.live import LIVE
from vsparse.artifact.models import CFootprint, CSourceRecord
from vsparse.artifact.noise import NoiseReason
from vsparse.artifact.samples import DataRecord, SplitRecord, SplitRecords
from vsparse.stages.report import render
from vsparse.stages.report.document import as_json
from vsparse.stages.report.samples import READ_IDS
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


DIGEST = "ab" * 32


def results(emulated: bool = False, audit: bool = True, batch: int = 1, text: str = "a made-up board") -> DeviceResults:
    """Results of a device: the packed network, the C source and the file that certifies its own input."""

    def measured(role: str, file: str, ms: float, runtime: str, **more: Any) -> dict[str, Any]:
        detail = "the logits of 8 probe(s) lie inside their certified enclosures" if audit else f"p0.bin: logit 1 is 9, outside {text}"
        return {
            "file": file,
            "role": role,
            "gates": ({"name": "audit", "passed": audit, "detail": detail},),
            "latency": {
                "samples_ms": (ms, 2 * ms),
                "runs_timed": 6,
                "all_runs_ns": {"values": (int(1e6 * ms), int(2e6 * ms)), "counts": (5, 1)},
            },
            "runtime": {"name": runtime, "version": "1.2.3"},
            "settings": {"batch": batch},
            "memory": {"process_peak_bytes": 12_300_000},
            "power": {"power_mw_mean": 4000.0, "readings": 7, "ms_per_run": 0.3125, "energy_mj_per_run_estimate": 1.25},
            **more,
        }

    content = {
        "kind": "vsparse-device-results",
        "target": "raspberry-pi-5",
        "device": {"model": text, "emulated": emulated},
        "models": (measured("packed", "model.fp32.onnx", 0.25, "onnxruntime", onnx_sha256=DIGEST),),
        "further": (
            measured("sequential", "model.c", 0.0625, "c", source_sha256=DIGEST),
            measured("certifying", "model.certify.onnx", 0.5, "onnxruntime", onnx_sha256=DIGEST, settings={"batch": 1}),
        ),
        "gates": ({"name": "device", "passed": True, "detail": "this is the target's device"},),
        "manifest_sha256": DIGEST,
        "passed": audit,
        "timing": {"batch": batch, "threads": 1},
    }
    return DeviceResults.model_validate(content)


def on_a_device(directory: Path) -> None:
    """Writes an artifact with the results of a device."""
    make_artifact(directory)
    (directory / DEVICE_RESULTS).parent.mkdir(parents=True)
    write_document(directory / DEVICE_RESULTS, results())
    write_manifest(directory)


def refuted_on_a_device(directory: Path) -> None:
    """Writes an artifact whose audit failed on a device."""
    on_a_device(directory)
    write_document(directory / DEVICE_RESULTS, results(audit=False))
    write_manifest(directory)


def noisy_on_a_device(directory: Path) -> None:
    """Writes an artifact with results of a device that something made noisy, and with the times of layers."""
    on_a_device(directory)
    found = results()
    reason = NoiseReason(name="tail", value=900.0, limit=3.0, detail="the 99th percentile is 900.0 times the <i>median</i>")
    row = LayerTime(name="<b>conv1</b>", operator="FusedConv", average_ms=0.125, median_ms=0.125, percentage=62.5)
    model = found.models[0].model_copy(update={"noise": (reason,), "layer_times": (row,)})
    write_document(directory / DEVICE_RESULTS, found.model_copy(update={"models": (model,)}))
    write_manifest(directory)


def with_data(directory: Path) -> None:
    """Writes an artifact with its splits: two classes, a split of the source, one drawn out of it by groups, and a repeated sample."""
    make_artifact(directory)
    parts = {
        "train": SplitRecord(samples=50, classes=(30, 20), origin="a.npz", groups=9, repeated=0),
        "validation": SplitRecord(samples=10, classes=(5, 5), origin="drawn out of a.npz, 10 %", groups=3, repeated=0),
        "test": SplitRecord(samples=360, classes=(300, 60), origin="<b>t</b>.npz", repeated=2),
    }
    record = DataRecord(
        name="own", splits=SplitRecords(**parts), notes=(), sha256="ef" * 32, class_names=("<i>cat</i>", "dog"), shape=(1, 8, 8)
    )
    write_document(directory / "train" / "data.json", record)
    write_manifest(directory)


def with_requirements(directory: Path) -> None:
    """Writes an artifact with requirements: of a gate that passed, of one that failed, of one that was open, and of one not judged."""
    make_artifact(directory)
    (directory / "recipe.toml").write_text(
        'name = "digits"\n[data]\nname = "digits"\n'
        + "".join(
            f'[[requirements]]\nid = "R{place}"\ntext = "<b>text</b> {place}"\ngate = "{gate}"\n'
            for place, gate in enumerate(("certified_accuracy", "contract audit", "latency_ratio", "collapse"))
        )
    )
    gates = (("certified accuracy", True), ("contract audit", False), ("packed latency as a fraction of dense", None))
    write_list(directory / "gates.json", [Gate(name=name, wanted="w", got="g", passed=passed) for name, passed in gates])
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
    "uncertified": Case(
        "Not certified on this device: raspberry-pi-5: a made-up board", "model.c (sequential), audit: p0.bin", (), refuted_on_a_device
    ),
    "exact": Case("Warning: proved for exact arithmetic, not for any device", "leaves rounding out", (), in_exact_arithmetic),
    "verdict": Case("Every gate passed", "latency ratio passed"),
    "measured": Case("What was measured, and where", "Clean accuracy is", (*CERTIFICATES, "train")),
    "is": Case("What is guaranteed", "of 360 test images, no change of the pixels by up to 0.05"),
    "key": Case("Sparse and dense, side by side", "Sparse: 360 test images", (*CERTIFICATES, "compress", "profile")),
    "gates": Case("Gates", "at most 0.5", ("gates.json",)),
    "requirements": Case("Requirements and sign-off", "1 of 4 requirements of the recipe are met", (), with_requirements),
    "target": Case("What ran on the target, and what did not", "It is an observation and no bound: not a worst-case execution time"),
    "memory": Case("Memory of the microcontroller", "512 KiB (datasheet) at most 512 KiB, target cortex-m4f", (), on_a_microcontroller),
    "forms": Case("Deployed forms: which one was chosen, and why", "slower than fp32: 1.30 times its time", ("choice.json",)),
    "certificates": Case("Certificates", "One certificate for each file", CERTIFICATES),
    "curve": Case("Accuracy against ε", "0.07", ("certificate/curve.json", "certificate/dense/curve.json")),
    "live": Case("What the device certifies by itself", "certifies 311 of 360 test images", ("certificate/live.json",)),
    "classes": Case("Class by class", "1: certified 88.9 %, robust 88.9 %, clean 94.4 %", CERTIFICATES),
    "mistakes": Case("Which class for which, and which samples", "samples are certified with the right class", CERTIFICATES),
    "data": Case("Data", "Repeated to the last bit in a split before it (training, then validation): 2 of test", (), with_data),
    "methods": Case("What settled the images", "CROWN-IBP (one backward pass over interval bounds)6500", CERTIFICATES),
    "compression": Case("Compression, layer by layer", "conv2", ("compress",)),
    "latency": Case("Latency", "onnxruntime-fp32.json", ("profile",)),
    "devices": Case("Build machine and device, side by side", "12.3 MB1.25 mJ", (), on_a_device),
    "noise": Case("Noise", "Noisy: the 99th percentile is 900.0 times the <i>median</i>", ("profile",), noisy_on_a_device),
    "layers": Case("Time by layer on the device", "<b>conv1</b>FusedConv", (), noisy_on_a_device),
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


def test_a_requirement_is_met_by_a_gate_that_passed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_requirements(tmp_path)
    found = {one.id: one.status for one in gather(tmp_path).requirements}
    assert found == {"R0": "met", "R1": "not met", "R2": "not run", "R3": "not run"}
    page = page_of(tmp_path, next(one for one in SECTIONS if one.id == "requirements"), monkeypatch)
    assert "<b>text</b> 0" in page.text
    assert all(role in page.text for role in ("Prepared by", "Reviewed by", "Approved by"))
    assert sum(values.get("class") == "blank" for tag, values in page.attributes if tag == "td") == 4 + 9
    # Nothing is met by a certificate that is void.
    write_document(tmp_path / "certificate" / "audit.json", PASSED.model_copy(update={"passed": False}))
    write_manifest(tmp_path)
    assert [one.status for one in gather(tmp_path).requirements] == ["void", "not met", "not run", "not run"]


def test_every_share_has_its_interval_and_mistakes_are_counted(tmp_path: Path) -> None:
    make_artifact(tmp_path)
    facts = gather(tmp_path)
    told = as_json(facts, None)
    assert facts.sparse is not None
    exact = binomtest(facts.sparse.certified, facts.sparse.samples).proportion_ci(0.95, "exact")
    low, high = told["intervals"]["sparse"]["certified_share"]
    assert exact.low - 2e-6 <= low <= exact.low
    assert exact.high <= high <= exact.high + 2e-6
    assert len(told["intervals"]["sparse"]["classes"]) == 10
    rows = json.loads((tmp_path / "certificate" / "certificate.json").read_text())["claims"]
    assert told["certified_ids"] == [row["id"] for row in rows if row["verdict"] == "certified" and row["label"] == row["predicted"]]
    wrong = sum(row["label"] != row["predicted"] for row in rows)
    assert wrong == sum(pair["samples"] for pair in told["sparse"]["confusions"]) > 0
    slow = told["worst_observed_latency"]
    assert slow["latency_ms_max"] == max(one["latency_ms_max"] for one in told["noise"] if one["form"].endswith("packed"))
    assert slow["is_wcet"] is False


def test_the_command_that_lists_certified_samples_does_so(tmp_path: Path) -> None:
    make_artifact(tmp_path)
    done = subprocess.run([sys.executable, "-c", READ_IDS], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(gather(tmp_path).certified_ids)


def test_captions_stay_on_a_phone_and_tables_say_that_they_scroll(tmp_path: Path) -> None:
    make_artifact(tmp_path)
    page = render.html(gather(tmp_path))
    phone = page[page.index("@media screen and (max-width: 760px)") : page.index("@media print")]
    assert "display: none" not in phone
    assert "hide-small" not in page
    assert "background-attachment: local, local, scroll, scroll" in page
    assert "break-before: page" in page[page.index("@media print") :]


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


def device_page(directory: Path, monkeypatch: pytest.MonkeyPatch, found: DeviceResults, *sections: str) -> Page:
    on_a_device(directory)
    write_document(directory / DEVICE_RESULTS, found)
    write_manifest(directory)
    chosen = [one for one in SECTIONS if one.id in sections]
    monkeypatch.setattr(render, "SECTIONS", (*chosen, SECTIONS[-1]))
    return Page(render.html(gather(directory)))


def test_every_form_of_a_device_is_beside_the_build_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin and C too, percentiles of all runs, and whose numbers each column has."""
    page = device_page(tmp_path, monkeypatch, results(), "devices")
    for words in ("raspberry-pi-5: a made-up board", "fp32", "C source", "certifies its own input", "0.25 ms", "0.5 ms", "all passed"):
        assert words in page.text
    told = as_json(gather(tmp_path), None)["device"]
    assert (told["emulated"], told["of_target"], told["why_not"]) == (False, True, "")
    assert [(one["role"], one["latency_ms_p50"], one["latency_ms_p99"], one["latency_ms_max"], one["runs"]) for one in told["forms"]] == [
        ("packed", 0.25, 0.5, 0.5, 6),
        ("sequential", 0.0625, 0.125, 0.125, 6),
        ("certifying", 0.5, 1.0, 1.0, 6),
    ]


def test_an_emulated_device_is_labelled_everywhere_and_a_batch_per_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = device_page(tmp_path / "a", monkeypatch, results(emulated=True), "devices", "measured")
    assert page.text.count("raspberry-pi-5: a made-up board, emulated") >= 3
    assert "its times are not the target's numbers, and judge no gate" in page.text
    told = as_json(gather(tmp_path / "a"), None)["device"]
    assert (told["emulated"], told["of_target"], told["why_not"]) == (True, False, "emulated: not the target's numbers")
    page = device_page(tmp_path / "b", monkeypatch, results(batch=4), "devices")
    assert "0.0625 ms a sample" in page.text
    assert "timed with a batch of 4, and the recipe asks for 1" in page.text
    told = as_json(gather(tmp_path / "b"), None)["device"]
    assert [one["per_sample_ms_p50"] for one in told["forms"]] == [0.0625, 0.015625, 0.5]


def test_what_a_device_says_is_bounded_and_shows_no_control_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "\x1b[2J\x9b31m\u202e<script>alert(1)</script>" + "x" * 100_000
    on_a_device(tmp_path)
    plain = len(render.html(gather(tmp_path)))
    write_document(tmp_path / DEVICE_RESULTS, results(audit=False, text=hostile))
    write_manifest(tmp_path)
    page = render.html(gather(tmp_path))
    assert not {sign for sign in page if not sign.isprintable() and sign not in "\n\t\u00a0\u2011"}
    assert "<script>" not in page
    assert len(page) < plain + 20_000
    # What comes by another way than results of a device.
    gates = [Gate(name="x", wanted="y", got="\x1b[31mz\x85", passed=False)]
    write_list(tmp_path / "gates.json", gates)
    write_manifest(tmp_path)
    assert r"\x1b[31mz\x85" in render.html(gather(tmp_path))


def test_records_of_older_versions_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_artifact(tmp_path)
    split = {"samples": 10, "classes": [5, 5], "origin": "a.npz"}
    old = {"schema_version": 1, "name": "own", "splits": dict.fromkeys(("train", "validation", "test"), split), "notes": []}
    (tmp_path / "train" / "data.json").write_text(json.dumps(old))
    write_manifest(tmp_path)
    page = page_of(tmp_path, next(one for one in SECTIONS if one.id == "data"), monkeypatch)
    assert "was not examined by the version that built this" in page.text
    assert "not on record in an artifact of this age" in page.text
    found = gather(tmp_path).data
    assert found is not None
    assert found.model_dump(mode="json") == old
