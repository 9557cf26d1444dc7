"""The page: well formed, self-contained, escaped, and saying what report.json says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report_artifact import COMPARED, CONTRACT, PASSED, certificate, claims, make_artifact, write, write_manifest
from vsparse.artifact.counterexamples import Counterexamples
from vsparse.artifact.document import write_document
from vsparse.artifact.facts import gather
from vsparse.stages.report import sections, write_report
from vsparse.stages.report.render import html

VOID = {"meta", "br", "img", "link", "input", "hr", "col", "wbr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects ids, references, facts and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[tuple[str, str, str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.facts: dict[str, str] = {}
        self.words: list[str] = []
        self.headings: list[str] = []  # of sections, and what is strong, as the verdict is
        self.feed(source)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"{tag} repeats an attribute"
        self.attributes.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        for name in ("src", "href", "action", "data", "poster", "srcset", "background"):
            if name in values:
                self.references.append((tag, name, str(values[name])))
        if values.get("data-key"):
            self.facts[str(values["data-key"])] = str(values["value"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
        if self.open and self.open[-1] in ("h2", "strong"):
            self.headings.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def render(directory: Path) -> tuple[Page, dict[str, Any], str]:
    path = write_report(directory)
    assert path == directory / "report.html"
    source = path.read_text()
    return Page(source), json.loads((directory / "report.json").read_text()), source


def test_whole_artifact_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    page, _, source = render(make_artifact(tmp_path / "a"))
    assert all(value.startswith(("data:image/png;base64,", "#")) for _, _, value in page.references)
    assert "<script" not in source
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert len(page.ids) == len(set(page.ids))
    inner = {value[1:] for _, _, value in page.references if value.startswith("#")}
    assert inner <= set(page.ids)
    assert any(values.get("http-equiv") == "Content-Security-Policy" for _, values in page.attributes)


def test_images_and_charts_have_names_for_those_who_cannot_see_them(tmp_path: Path) -> None:
    page, _, _ = render(make_artifact(tmp_path / "a"))
    images = [values for tag, values in page.attributes if tag == "img"]
    charts = [values for tag, values in page.attributes if tag == "svg"]
    assert len(images) == 36
    assert all(values.get("alt") for values in images)
    assert len(charts) > 10
    assert all(values.get("role") == "img" and values.get("aria-label") for values in charts)
    labels = {str(values["aria-labelledby"]) for _, values in page.attributes if "aria-labelledby" in values}
    assert labels <= set(page.ids)


def test_facts_shown_are_those_of_report_json(tmp_path: Path) -> None:
    page, facts, _ = render(make_artifact(tmp_path / "a"))
    assert {"sparse.certified", "sparse.samples", "compression.removed_share", "latency.0.dense.latency_ms_p50", "gallery.total"} <= set(
        page.facts
    )
    for key, shown in page.facts.items():
        value: Any = facts
        for name in key.split("."):
            value = value[int(name)] if isinstance(value, list) else value[name]
        assert shown == str(value), key
    assert facts["schema_version"] == 1


def test_headline_counts_the_claims_themselves(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    rows = json.loads((directory / "certificate" / "certificate.json").read_text())["claims"]
    certified = sum(row["verdict"] == "certified" for row in rows)
    page, facts, _ = render(directory)
    assert 0 < certified < 360
    assert f"For {certified} of 360 test images, no change of the pixels by up to 0.05 each can alter" in page.text
    assert "on any device that keeps the fp32 contract" in page.text
    assert facts["sparse"]["certified_share"] == certified / 360
    assert facts["verdict"] == "passed"
    assert "What is not guaranteed" in page.text
    assert "unknown is not safe" in page.text


def test_a_section_is_a_line_of_the_table_and_a_template() -> None:
    templates = {path.stem for path in Path(sections.__file__).parent.glob("*.html")}
    assert [section.id for section in sections.SECTIONS] == list(dict.fromkeys(section.id for section in sections.SECTIONS))
    assert {section.id for section in sections.SECTIONS} == templates


def test_same_artifact_gives_the_same_bytes(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    first = (write_report(directory).read_bytes(), (directory / "report.json").read_bytes())
    assert (write_report(directory).read_bytes(), (directory / "report.json").read_bytes()) == first


def test_hostile_names_are_escaped_everywhere(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    directory = make_artifact(tmp_path / "a", [4, 4, 4], [bad, bad + "2", bad + "3"])
    quoted = bad.replace('"', '\\"')
    (directory / "recipe.toml").write_text(f'name = "n"\ndescription = "{quoted}"\n[data]\nname = "{quoted}"\n')
    layers = json.loads((directory / "compress" / "layers.json").read_text())
    layers["rows"][0]["name"] = layers["rows"][0]["type"] = layers["reductions"][0]["kind"] = bad
    layers["proof"] = bad
    write(directory / "compress" / "layers.json", layers)
    write(directory / "gates.json", [{"name": bad, "wanted": bad, "got": bad, "passed": False}])
    audit = PASSED.model_copy(update={"passed": False, "reason": bad, "largest_share_at": bad, "shown": (bad, bad)})
    write_document(directory / "certificate" / "audit.json", audit)
    latency = json.loads((directory / "profile" / "onnxruntime-fp32.json").read_text())
    latency["packed"]["machine"]["processor"] = bad
    write(directory / "profile" / "onnxruntime-fp32.json", latency)
    write_manifest(directory)
    page, _, source = render(directory)
    assert "<script" not in source
    assert "onerror" not in {name for _, values in page.attributes for name in values}
    assert {tag for tag, _ in page.attributes}.isdisjoint({"script", "iframe", "object", "embed", "form", "link"})
    assert "alert(1)" in page.text


@pytest.mark.parametrize(
    "absent",
    [
        "certificate/certificate.json",
        "certificate/dense",
        "certificate/curve.json",
        "certificate/counterexamples.npz",
        "certificate/audit.json",
        "certificate/cross_check.json",
        "compress",
        "profile",
        "train",
        "gates.json",
        "target.toml",
        "recipe.toml",
        "manifest.json",
        "certificate",
    ],
)
def test_absent_parts_are_left_out(tmp_path: Path, absent: str) -> None:
    directory = make_artifact(tmp_path / "a")
    path = directory / absent
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        file.unlink()
    if absent != "manifest.json":
        write_manifest(directory)
    page, facts, _ = render(directory)
    assert "Glossary" in page.text
    if absent in ("certificate/certificate.json", "certificate"):
        assert facts["verdict"] == "unproved"
        assert "Nothing yet." in page.text
        assert "What is not guaranteed" not in page.text
    if absent == "certificate/audit.json":
        assert "Audit: not on record" in page.text
    if absent == "gates.json":
        assert facts["verdict"] == "incomplete"


def test_manifest_alone_gives_a_page(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    _, facts, _ = render(tmp_path)
    assert facts["verdict"] == "unproved"


def test_no_counterexamples(tmp_path: Path) -> None:
    page, facts, _ = render(make_artifact(tmp_path / "a", counterexamples=0))
    assert facts["gallery"]["total"] == 0
    assert "The attack broke no image" in page.text
    assert not any(tag == "img" for tag, _ in page.attributes)


def test_forty_three_classes_and_one_without_samples(tmp_path: Path) -> None:
    sizes = [7] * 43
    sizes[5] = 0
    page, facts, _ = render(make_artifact(tmp_path / "a", sizes, [f"sign {i}" for i in range(43)], channels=3))
    assert len(facts["sparse"]["classes"]) == 43
    assert facts["sparse"]["classes"][5] == {"name": "sign 5", "samples": 0, "correct": 0, "withstood": 0, "certified": 0}
    assert page.text.count("nothing is known about it") == 1
    assert sum(row["certified"] for row in facts["sparse"]["classes"]) == facts["sparse"]["certified"]


def test_real_contract_is_a_loud_warning(tmp_path: Path) -> None:
    contract = {key: "real" if value == "fp32" else value for key, value in CONTRACT.items()}
    page, _, _ = render(make_artifact(tmp_path / "a", contract=contract))
    assert "Warning: proved for exact arithmetic, not for any device" in page.text
    assert "in exact arithmetic only" in page.text
    assert "on any device that keeps" not in page.text


@pytest.mark.parametrize("part", ["audit", "cross_check"])
@pytest.mark.parametrize("change", [{"passed": False}, {"passed": True, "violations": 1}])
def test_a_violation_voids_the_certificate_loudly(tmp_path: Path, part: str, change: dict[str, Any]) -> None:
    directory = make_artifact(tmp_path / "a")
    if part == "cross_check":
        change = {"passed": False}  # it counts no violations
    write_document(directory / "certificate" / f"{part}.json", {"audit": PASSED, "cross_check": COMPARED}[part].model_copy(update=change))
    write_manifest(directory)
    page, facts, _ = render(directory)
    assert facts["verdict"] == "void"
    assert "This certificate is void. Do not rely on it." in page.text
    assert "can alter the network's correct answer" not in page.text
    assert "VIOLATION" in page.text
    assert "Every gate passed" not in page.text


def test_a_failed_gate_is_named(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    write(directory / "gates.json", [{"name": "latency_ratio", "wanted": "0.5", "got": "0.8", "passed": False}])
    write_manifest(directory)
    page, facts, _ = render(directory)
    assert facts["verdict"] == "failed"
    assert "latency ratio FAILED" in page.text


def test_changed_file_voids_the_page(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    path = directory / "compress" / "layers.json"
    path.write_text(path.read_text() + " ")
    page, facts, _ = render(directory)
    assert facts["verdict"] == "void"
    assert facts["provenance"]["changed_files"] == ["compress/layers.json"]
    assert "compress/layers.json" in page.text


def test_certificate_changed_after_it_was_written_is_void(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    path = directory / "certificate" / "certificate.json"
    content = json.loads(path.read_text())
    row = next(row for row in content["claims"] if row["verdict"] == "certified")
    row.update(margin_lower=50.0)
    write(path, content)
    write_manifest(directory)
    facts = gather(directory)
    assert facts.verdict == "void"
    assert facts.sparse is not None
    assert "certificate_sha256 no longer fits" in facts.sparse.void_reason


def test_nothing_certified_is_said_so(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a", [5, 5])
    rows = claims([5, 5], 1)
    for row in rows:
        row.update(verdict="unknown", margin_lower=None, predicted=row["label"], method="none", proof=None)
    write(directory / "certificate" / "certificate.json", certificate(rows, ["a", "b"], "8/255"))
    write_manifest(directory)
    page, facts, _ = render(directory)
    assert facts["sparse"]["certified"] == 0
    assert "Nothing: for none of the 10 test images" in page.text
    assert "8/255 (about 0.0314)" in page.text


def test_inputs_that_are_no_pictures(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    flat = np.zeros((2, 5), dtype=np.float32)
    found = Counterexamples(np.array([900, 901]), flat, flat, np.array([0, 99]), np.array([1, -1]))
    found.write(directory / "certificate" / "counterexamples.npz")
    write_manifest(directory)
    page = Page(html(gather(directory)))
    assert page.text.count("This input is no picture") == 2


def test_a_packed_network_that_differs_is_said_so(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "a")
    page, _, _ = render(directory)
    assert "The packed network is the trained one: equal" in page.text
    layers = json.loads((directory / "compress" / "layers.json").read_text())
    layers["equality"]["within_bound"] = False
    write(directory / "compress" / "layers.json", layers)
    write_manifest(directory)
    page, _, _ = render(directory)
    assert "differs from the trained one by more than rounding allows: within bound failed" in page.text
    assert "The packed network is the trained one" not in page.text


def test_a_model_with_another_content_than_the_certificate_names_voids_the_page(tmp_path: Path) -> None:
    import onnx

    directory = make_artifact(tmp_path / "a")
    (directory / "model").mkdir()
    graph = onnx.helper.make_graph([], "g", [], [])
    (directory / "model" / "model.fp32.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    write_manifest(directory)
    page, facts, _ = render(directory)
    assert facts["verdict"] == "void"
    assert "model/model.fp32.onnx is not the file that its certificate is about" in page.text
