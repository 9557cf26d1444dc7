"""Every JSON file of a build has a typed model: it is read as that, and written again it is the same, byte for byte."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from vsparse.artifact.certificate import read_certificate, write_certificate
from vsparse.artifact.checks import AuditRecord, CrossCheckRecord, Gate
from vsparse.artifact.choice import FormChoice
from vsparse.artifact.curve import Curve
from vsparse.artifact.document import load_json, read_document, read_list, write_document, write_list
from vsparse.artifact.history import History
from vsparse.artifact.latency import LatencyFile
from vsparse.artifact.layers import LayerTable
from vsparse.artifact.layout import Manifest
from vsparse.artifact.models import CSourceRecord, RuntimeGraphReport
from vsparse.artifact.samples import DataRecord
from vsparse.errors import InputError
from vsparse.reading.evidence import ReadingEvidence
from vsparse.schema import Section

MODELS: dict[str, type[Section]] = {
    "manifest.json": Manifest,
    "train/data.json": DataRecord,
    "history.json": History,
    "compress/layers.json": LayerTable,
    "runtime_graph*.json": RuntimeGraphReport,
    "reading*.json": ReadingEvidence,
    "c_source*.json": CSourceRecord,
    "curve.json": Curve,
    "audit.json": AuditRecord,
    "cross_check.json": CrossCheckRecord,
    "profile/*.json": LatencyFile,
    "profile/precisions/*.json": LatencyFile,
    "profile/forms/*.json": LatencyFile,
    "choice.json": FormChoice,
}
# device/ is for machines without vsparse, and report.json follows from all the others (tests/report).
ELSEWHERE = {"device/manifest.json", "report.json"}


def again(path: Path, name: str, copy: Path) -> None:
    """Reads a file of an artifact as its model and writes it to `copy`."""
    if PurePosixPath(name).name == "certificate.json":
        write_certificate(copy, read_certificate(path))
    elif name == "gates.json":
        write_list(copy, read_list(Gate, path))
    else:
        (model,) = {model for pattern, model in MODELS.items() if PurePosixPath(name).match(pattern)}
        write_document(copy, read_document(model, path))


def test_every_document_of_a_build_is_read_and_written_by_its_model(tiny_artifact: Path, tmp_path: Path) -> None:
    names = {path.relative_to(tiny_artifact).as_posix() for path in tiny_artifact.rglob("*.json")} - ELSEWHERE
    assert len(names) > 15
    for name in sorted(names):
        again(tiny_artifact / name, name, tmp_path / "copy.json")
        assert (tmp_path / "copy.json").read_bytes() == (tiny_artifact / name).read_bytes(), name


@pytest.mark.parametrize("model", sorted({*MODELS.values(), Gate}, key=lambda model: model.__name__))
def test_models_are_immutable_and_know_their_keys(model: type[Section]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["strict"]
    assert not model.model_config["allow_inf_nan"]


@pytest.mark.parametrize(
    ("text", "content"), [(r'{"a": "\ud800"}', None), (r'{"\uDFFF": 1}', None), (r'{"a": "\ud83d\ude00"}', {"a": "\U0001f600"})]
)
def test_half_of_a_pair_is_no_character(tmp_path: Path, text: str, content: dict[str, str] | None) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    if content is not None:
        assert load_json(path) == content
        return
    with pytest.raises(InputError, match="not valid JSON"):
        load_json(path)
