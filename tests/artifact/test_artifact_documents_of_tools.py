"""smoothing.json and a device folder's manifest come back as they were written, and what was edited without sense is refused by its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vsparse.artifact.device_folder import DeviceFolder, DeviceFolderModel, DeviceProbe, DeviceTarget, DeviceTiming
from vsparse.artifact.document import Document, read_document, write_document
from vsparse.artifact.smoothing import SmoothedClaim, SmoothingResult, SmoothingSummary
from vsparse.errors import InputError

DIGEST = "0a" * 32
SMOOTHING = SmoothingResult(
    meaning="m",
    assumption="a",
    theorem="t",
    model={"file": "model.onnx", "sha256": DIGEST},
    data="digits",
    sigma=0.25,
    n0=100,
    n=1000,
    alpha=0.001,
    seed=0,
    noise="philox",
    replay={"runtime": "onnxruntime"},
    reading=None,
    summary=SmoothingSummary(samples=1, abstained=0, certified_accuracy_at_0=1.0),
    claims=(SmoothedClaim(id=0, input_sha256=DIGEST, label=3, candidate=3, predicted=3, votes=999, draws=1000, p_lower=0.99, radius=0.5),),
)
FOLDER = DeviceFolder(
    recipe="digits",
    contract={"name": "fp32"},
    certificate_sha256=DIGEST,
    script_sha256=DIGEST,
    target=DeviceTarget(name="local", kind="host", module="", runtime="onnxruntime", soc="", modules=(), power_rails=()),
    timing=DeviceTiming(),
    models=(
        DeviceFolderModel(
            role="packed",
            file="model.onnx",
            sha256=DIGEST,
            content_sha256=DIGEST,
            input="input",
            input_shape=(1, 8, 8),
            output="logits",
            probes=(DeviceProbe(file="probe-packed-0.bin", sha256=DIGEST, lower=(-1.0,), upper=(1.0,)),),
        ),
    ),
)
# (document, the place that is edited, its value, the key that the refusal names)
EDITS: list[tuple[Document, tuple[Any, ...], Any, str]] = [
    (SMOOTHING, ("claims", 0, "radius"), -0.5, "radius"),
    (SMOOTHING, ("claims", 0, "p_lower"), 1.5, "p_lower"),
    (SMOOTHING, ("claims", 0, "votes"), "999", "votes"),
    (SMOOTHING, ("summary", "abstained"), -1, "abstained"),
    (SMOOTHING, ("kind",), "certified", "kind"),
    (FOLDER, ("models", 0, "sha256"), "f", "sha256"),
    (FOLDER, ("models", 0, "input_shape"), [0], "input_shape"),
    (FOLDER, ("models", 0, "probes", 0, "lower"), ["low"], "lower"),
    (FOLDER, ("models",), [], "models"),
    (FOLDER, ("target", "runtime"), "abacus", "runtime"),
]


@pytest.mark.parametrize("document", [SMOOTHING, FOLDER], ids=["smoothing", "device folder"])
def test_a_document_comes_back_as_it_was_written(document: Document, tmp_path: Path) -> None:
    write_document(tmp_path / "d.json", document)
    assert read_document(type(document), tmp_path / "d.json") == document


@pytest.mark.parametrize(("document", "at", "value", "key"), EDITS, ids=[".".join(map(str, at)) for _, at, _, _ in EDITS])
def test_an_edit_without_sense_is_refused_by_its_key(document: Document, at: tuple[Any, ...], value: Any, key: str, tmp_path: Path) -> None:
    content = document.model_dump(mode="json")
    inner = content
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=key):
        read_document(type(document), tmp_path / "d.json")
