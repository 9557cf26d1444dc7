"""`vsparse predict`: classes and proved radii of images and arrays, compared with certificates and attacked; and errors as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import vsparse
from vsparse import artifact, cli, prediction
from vsparse.artifact.certificate import read_certificate
from vsparse.artifact.device import DEVICE_RESULTS
from vsparse.artifact.forms import SPARSE
from vsparse.data.load import load
from vsparse.errors import InputError
from vsparse.files import sha256_file
from vsparse.graph import Gemm, Graph, to_onnx
from vsparse.prediction import predict
from vsparse.recipe import load_recipe


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for i in (0, 1):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.round(load_digits().images[i] / 16 * 255).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def _archive(folder: Path, values: np.ndarray) -> Path:
    np.savez(folder / "x.npz", x=values)
    return folder / "x.npz"


def test_test_samples_have_the_margins_of_the_certificate(tiny_artifact: Path, tmp_path: Path) -> None:
    certificate = read_certificate(tiny_artifact / SPARSE.certificate)
    claims = [claim for claim in certificate.claims if claim.verdict == "certified" and claim.method in ("interval", "crown-ibp")][:4]
    recipe = load_recipe(str(tiny_artifact / artifact.RECIPE))
    x = load(recipe.data, None, recipe.train.seed).test.inputs(np.array([claim.id for claim in claims]))
    found = predict(tiny_artifact, [_archive(tmp_path, x)])
    assert found.contract == certificate.contract["name"]
    assert found.property == certificate.property
    for one, claim in zip(found.predictions, claims, strict=True):
        assert one.label == claim.label
        assert one.certified
        # A claim states its bound with room for the checker's own roundings.
        assert one.margin_lower == pytest.approx(claim.margin_lower, abs=1e-4)
        assert one.margin_lower >= claim.margin_lower
        assert one.radius is not None
        assert one.radius >= float(certificate.property.epsilon)


def test_no_input_within_the_radius_has_another_class(tiny_artifact: Path, images: list[Path]) -> None:
    session = onnxruntime.InferenceSession(tiny_artifact / artifact.MODEL, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    found = predict(tiny_artifact, images).predictions
    for one, path in zip(found, images, strict=True):
        assert one.radius is not None
        assert one.radius > 0
        x = (np.asarray(Image.open(path), np.float32) / np.float32(255))[None]
        signs = rng.choice([-1.0, 1.0], size=(500, *x.shape))
        points = np.clip(x + one.radius * signs, 0, 1).astype(np.float32)
        for point in points:
            assert session.run(None, {session.get_inputs()[0].name: point[None]})[0].argmax() == one.label
    wider = predict(tiny_artifact, images, epsilon="0.9").predictions
    assert [one.radius for one in wider] == [one.radius for one in found]
    assert not any(one.certified for one in wider)


def test_an_onnx_file_has_the_contract_of_its_execution_and_no_radius(tiny_artifact: Path, images: list[Path]) -> None:
    found = vsparse.predict(tiny_artifact / artifact.MODEL, images)
    assert found.contract == "fp32"
    assert str(found.property.epsilon) == "0"
    assert [one.radius for one in found.predictions] == [one.radius for one in predict(tiny_artifact, images).predictions]


def test_an_audit_that_failed_on_a_device_is_said(tiny_artifact: Path, images: list[Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    gate = {"name": "audit", "passed": False, "detail": "logit 3 is outside"}
    model = {"file": "model.fp32.onnx", "role": "packed", "onnx_sha256": "0" * 64, "gates": [gate]}
    content = {"kind": "vsparse-device-results", "schema_version": 1, "target": "local", "device": {"model": "a board"}, "models": [model]}
    (root / DEVICE_RESULTS).parent.mkdir()
    (root / DEVICE_RESULTS).write_text(json.dumps(content | {"gates": [], "manifest_sha256": "", "passed": False}))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"][DEVICE_RESULTS] = sha256_file(root / DEVICE_RESULTS)
    (root / "manifest.json").write_text(json.dumps(manifest))
    (remark,) = predict(root, images).remarks
    assert remark == "not certified on this device (local: a board): model.fp32.onnx (packed), audit: logit 3 is outside"


def test_an_empty_radius_is_no_radius(tiny_artifact: Path, images: list[Path]) -> None:
    with pytest.raises(InputError, match="epsilon"):
        predict(tiny_artifact, images, epsilon="")


def test_the_command_prints_a_table_or_json(tiny_artifact: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["predict", str(tiny_artifact), *map(str, images)]) == 0
    out = capsys.readouterr().out
    assert images[1].name in out
    assert "under contract fp32: any change of each pixel by up to 0.01" in out
    assert cli.run(["predict", str(tiny_artifact), *map(str, images), "--epsilon", "1/50", "--norm", "l2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["property"] == {"norm": "l2", "epsilon": "1/50", "clip": [0.0, 1.0]}
    assert [row["source"] for row in told["predictions"]] == list(map(str, images))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 1, 9, 9), np.float32), "the network takes 1 × 8 × 8"),
        (np.full((1, 8, 8), 7.0), "values outside"),
        (np.full((1, 8, 8), np.nan, np.float32), "values outside"),
        (np.zeros((1, 8, 8), np.int64), "int64"),
        (np.zeros((0, 1, 8, 8), np.float32), "shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tiny_artifact: Path, tmp_path: Path, values: np.ndarray, words: str) -> None:
    with pytest.raises(vsparse.errors.InputError, match=words):
        predict(tiny_artifact, [_archive(tmp_path, values)])


def test_a_mistake_is_a_document_too_with_json(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large, text = tmp_path / "large.png", tmp_path / "text.png"
    Image.new("RGB", (9, 8)).save(large)
    text.write_text("no image")
    for arguments, words in (
        (["predict", str(tiny_artifact), str(large)], "is 9 × 8 RGB, and the network takes 8 × 8 grey"),
        (["predict", str(tiny_artifact), str(text)], "is no PNG, JPEG, BMP, PPM or PGM image by its first bytes"),
        (["predict", str(tiny_artifact)], "INPUTS"),
        (["build", "digitz"], "did you mean"),
        (["check", str(tmp_path / "none"), "--memory", "much"], "--memory"),
    ):
        assert cli.run([*arguments, "--json"]) == 2
        found = capsys.readouterr()
        told = json.loads(found.out)
        assert set(told) == {"error", "exit_code"}
        assert words.lower() in told["error"].lower()
        assert told["exit_code"] == 2
        assert found.err == f"vsparse: {told['error']}\n"
        assert cli.run(arguments) == 2
        assert capsys.readouterr().out == ""


def test_an_interrupted_command_is_a_document_too_with_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vsparse.prediction.predict", interrupt)
    assert cli.run(["predict", "net.onnx", "x.npz", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["exit_code"] == 130


def test_the_cache_is_listed_and_pruned(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["cache", "ls", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert {row["stage"] for row in before["entries"]} >= {"compress"}
    assert before["bytes"] == sum(row["bytes"] for row in before["entries"])
    assert cli.run(["cache", "prune", "--days", "0", "--dry-run"]) == 0
    assert "would go" in capsys.readouterr().out
    assert cli.run(["cache", "ls"]) == 0
    assert f"{len(before['entries'])} folders" in capsys.readouterr().out


def test_what_is_not_executed_as_it_is_read_predicts_nothing(
    tiny_artifact: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_artifact / artifact.MODEL

    with pytest.raises(vsparse.errors.InputError, match="int8-exact"):
        predict(model, images, contract="int8-exact")
    read = []
    real = prediction.check_reading
    monkeypatch.setattr(prediction, "check_reading", lambda *given, **named: (read.append(named["asked"]), real(*given, **named))[1])
    predict(model, images)
    assert [asked.lower.shape for asked in read] == [(2, 1, 8, 8)]


def test_a_void_certificate_has_no_predictions(tiny_artifact: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    void = read_certificate(tiny_artifact / SPARSE.certificate).model_copy(update={"void": "an execution contradicts it"})
    monkeypatch.setattr(prediction, "read_certificate", lambda path: void)
    with pytest.raises(vsparse.errors.GateError, match="is void: an execution contradicts it"):
        predict(tiny_artifact, images)


def _one_answer(folder: Path) -> Path:
    """A network that answers with 2·x₀ − x₁."""
    params = {"w": np.array([[2, -1]], np.float32)}
    graph = Graph("x", (2,), (Gemm(name="z", inputs=("x",), shape=(1,), weight="w", bias=None),), "z", params)
    (folder / "one.onnx").write_bytes(to_onnx(graph).SerializeToString())
    return folder / "one.onnx"


def test_a_network_with_one_answer_is_asked_about_with_delta(tmp_path: Path) -> None:
    model, rows = _one_answer(tmp_path), _archive(tmp_path, np.array([[0.5, 0.25]], np.float32))
    (one,) = predict(model, [rows], epsilon="0.1", delta="0.5").predictions
    assert one.value == pytest.approx(0.75)
    assert one.certified
    assert 0.3 <= one.change_upper <= 0.3001  # |2|·ε + |−1|·ε
    assert one.radius == pytest.approx(0.1666, abs=2e-4)
    assert not predict(model, [rows], epsilon="0.1", delta="0.29").predictions[0].certified


@pytest.mark.parametrize(("delta", "told"), [(None, "say --delta"), ("0", "must be above 0"), ("nan", "is not a number"), ("-1", "delta")])
def test_a_delta_that_is_none_is_refused(tmp_path: Path, delta: str | None, told: str) -> None:
    rows = _archive(tmp_path, np.array([[0.5, 0.25]], np.float32))
    with pytest.raises(InputError, match=told):
        predict(_one_answer(tmp_path), [rows], delta=delta)


def test_a_classifier_has_no_delta(tiny_artifact: Path, images: list[Path]) -> None:
    with pytest.raises(InputError, match="classifies; leave it out"):
        predict(tiny_artifact, images, delta="1")
    with pytest.raises(InputError, match="about networks with one"):
        predict(tiny_artifact / artifact.MODEL, images, delta="1")
