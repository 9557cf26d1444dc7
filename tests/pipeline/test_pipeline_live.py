"""A whole build with deploy.live: counts, gate, report, and verdicts that the checker replays."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from tiny_build import TINY
from vsparse.artifact import files_of
from vsparse.artifact.document import read_document
from vsparse.artifact.forms import SEQUENTIAL, SPARSE
from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.history import History
from vsparse.artifact.live import LIVE, LiveRecord
from vsparse.artifact.models import CERTIFYING_FILE
from vsparse.cli import run
from vsparse.data import load
from vsparse.errors import InputError
from vsparse.graph import from_torch
from vsparse.pipeline.requirements import require_forms
from vsparse.recheck import recheck
from vsparse.recipe import load_recipe
from vsparse.stages.train.validation import validated_by
from vsparse_check import check


def raise_a_margin(folder: Path) -> None:
    """Raises a constant of the certifying file by one unit in its last place, too little for any sample of its margins, and signs."""
    model = onnx.load(folder / CERTIFYING_FILE)
    tensor = next(one for one in model.graph.initializer if one.name == "certify.margin.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.nextafter(numpy_helper.to_array(tensor), np.float32(np.inf)), tensor.name))
    data = model.SerializeToString(deterministic=True)
    for place in (CERTIFYING_FILE, "device/model.certify.onnx"):
        (folder / place).write_bytes(data)
    for place, key, value in (
        ("model/certify.json", ("content_sha256",), content_sha256(model)),
        ("device/manifest.json", ("certifying", "sha256"), hashlib.sha256(data).hexdigest()),
        ("manifest.json", ("files",), None),
    ):
        content = json.loads((folder / place).read_text())
        inner = content
        for name in key[:-1]:
            inner = inner[name]
        inner[key[-1]] = files_of(folder) if value is None else value
        (folder / place).write_text(json.dumps(content))


@pytest.mark.slow
def test_a_build_counts_what_its_c_certifies_and_the_checker_replays_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [part for one in (*TINY, "deploy.live=true", "gates.live_certified_accuracy=0.01") for part in ("--set", one)]
    out = tmp_path / "artifact"
    assert run(["build", "digits", *settings, "--out", str(out)]) == 0
    record = read_document(LiveRecord, out / LIVE)
    assert record.at_epsilon.samples == 40
    assert record.frames
    history = read_document(History, out / "train" / "history.json")
    assert {epoch.measure for epoch in history.sparse or ()} == {"interval"}
    assert "What the device certifies by itself" in (out / "report.html").read_text(encoding="utf-8")
    found = recheck(out)
    assert found.passed, found.sentence
    assert found.live.frames == len(record.frames)
    alone = check(out)
    assert alone.passed
    assert f"the curve of {LIVE}" in found.left
    assert "model.certify.onnx" in alone.left
    assert "model.certify.onnx" not in found.left
    forged = Path(shutil.copytree(out, tmp_path / "forged"))
    raise_a_margin(forged)
    found = recheck(forged)
    assert found.verdict == "refuted"
    assert "model/model.certify.onnx is not what the artifact is written as" in found.problem
    capfd.readouterr()
    failing = [*settings, "--set", "gates.live_certified_accuracy=1"]
    assert run(["build", "digits", *failing, "--out", str(out)]) == 1
    assert "live certified accuracy" in capfd.readouterr().out


@pytest.mark.slow
def test_a_build_in_int8_counts_both_forms_and_judges_the_one_it_chose(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Of 40 samples int8 may lose two, more than the recipe's one point.
    form = ("choose.forms=['C int8']", "choose.certified_loss=0.1")
    live = ("deploy.live=true", "gates.live_certified_accuracy=0.01", "export.precisions=['int8']", *form)
    settings = [part for one in (*TINY, *live, "train.baseline=false") for part in ("--set", one)]
    out = tmp_path / "artifact"
    assert run(["build", "digits", *settings, "--out", str(out)]) == 0
    assert "live, int8: at epsilon 0.01 the device certifies" in " ".join(capfd.readouterr().out.split())
    record = read_document(LiveRecord, out / LIVE)
    assert record.int8 is not None
    assert record.int8.network_sha256 == content_sha256(out / "model" / "model.int8.onnx")
    gates = {gate["name"]: gate["got"] for gate in json.loads((out / "gates.json").read_text())}
    assert gates["live certified accuracy"] == f"{100 * record.int8.at_epsilon.accuracy:.2f} %"
    found = recheck(out)
    assert found.passed, found.sentence
    assert (found.live.frames, found.live.int8_frames) == (len(record.frames), len(record.int8.frames))


@pytest.mark.slow
def test_a_build_with_a_budget_counts_both_tiers_and_the_checker_replays_them(tmp_path: Path) -> None:
    wanted = (*TINY, "deploy.live=true", "deploy.live_budget=9", "property.epsilon='0.04'", 'train.objective="natural"')
    settings = [part for one in wanted for part in ("--set", one)]
    out = tmp_path / "artifact"
    assert run(["build", "digits", *settings, "--out", str(out)]) == 0
    record = read_document(LiveRecord, out / LIVE)
    assert record.budget == 9
    at = record.at_epsilon
    assert at.by_intervals is not None
    assert at.by_intervals < at.certified
    assert all(one.by_intervals is not None and one.by_intervals <= one.certified for one in record.curve)
    assert [one.certified for one in record.curve] == sorted((one.certified for one in record.curve), reverse=True)
    assert "vsparse_certify_budget" in (out / "model" / "model.h").read_text(encoding="utf-8")
    assert "By intervals alone" in (out / "report.html").read_text(encoding="utf-8")
    found = recheck(out)
    assert found.passed, found.sentence
    assert found.live.by_interval < found.live.certified


@pytest.mark.parametrize("objective", ["ibp", "mtl-ibp", "natural"])
def test_validation_counts_intervals_where_a_device_certifies_by_them(objective: str) -> None:
    plain, live = (load_recipe("digits", [f"train.objective={objective}", f"deploy.live={value}"]) for value in ("false", "true"))
    assert validated_by(live) == "interval"
    assert (validated_by(plain) == "interval") is (objective == "ibp")
    assert plain.train == live.train
    both = load_recipe("digits", [f"train.objective={objective}", "deploy.live=true", "deploy.live_budget=9"])
    assert validated_by(both) == "crown"


@pytest.mark.parametrize(("last", "says"), [(nn.Sigmoid(), r"is a Sigmoid, which has no interval form in C"), (nn.Identity(), "")])
def test_a_network_that_no_device_certifies_live_is_refused_before_training(last: nn.Module, says: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3), last).eval()
    graph = from_torch(module, (1, 4, 4))
    training = load(load_recipe("digits").data, None, 0).train
    forms = {SPARSE: "fp32", SEQUENTIAL: "sequential"}
    require_forms(forms, load_recipe("digits"), graph, training)
    wanted = load_recipe("digits", ["deploy.live=true"])
    with pytest.raises(InputError, match="c_source"):
        require_forms({SPARSE: "fp32"}, wanted, graph, training)
    if says:
        with pytest.raises(InputError, match=says):
            require_forms(forms, wanted, graph, training)
    else:
        require_forms(forms, wanted, graph, training)
