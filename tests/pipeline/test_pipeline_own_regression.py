"""A number to predict from data of one's own: built and certified, with a network of one's own too, and asked about with --delta."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tiny_build import TINY
from vsparse import cli
from vsparse.data import load
from vsparse.pipeline.build import build
from vsparse.prediction import predict
from vsparse.recheck import recheck
from vsparse.recipe import Data

SETTINGS = [*(one for one in TINY if "latency_ratio" not in one and "curve" not in one), "train.baseline=false", "verify.cross_check=0"]
TABLE = [
    "data.path=own.csv",
    "data.name=own",
    "data.target=price",
    "data.kind=regression",
    "property.delta=40",
    "train.objective=regression",
]
DELTA, EPSILON = "0.3", "0.02"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("own"), np.random.RandomState(0)
    area, zone = rng.uniform(30, 200, 300), rng.randint(0, 2, 300)
    rows = [f"{a:.1f},{('old', 'new')[z]},{100 + 3 * a + 60 * z:.2f}" for a, z in zip(area, zone, strict=True)]
    (folder / "own.csv").write_text("\n".join(["area,zone,price", *rows]) + "\n")
    (folder / "own.toml").write_text("schema_version = 1\n")
    x = rng.random_sample((200, 4)).astype(np.float32)
    np.savez(folder / "flat.npz", x=x, y=3.0 * x[:, 0] - 2.0 * x[:, 1] + 5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    targets = torch.from_numpy(np.load(folder / "flat.npz")["y"]).float()
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(torch.from_numpy(x))[:, 0], targets).backward()
        optimiser.step()
    torch.onnx.export(net.eval(), (torch.zeros(1, 4),), folder / "flat.onnx", dynamo=False)
    return folder


pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's older exporter


def test_a_table_with_a_number_is_built_certified_and_checked(folder: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, *TABLE, "train.epochs=60", "train.sparsity=0.5", "property.samples=0"]
    result = build(str(folder / "own.toml"), data=folder, out=tmp_path / "out", settings=settings)
    assert result.passed, [gate for gate in result.gates if gate.passed is False]
    figures = result.figures["sparse"]
    assert figures["mean_absolute_error"] < figures["constant_mean_absolute_error"] / 2
    found = recheck(tmp_path / "out", data=str(folder))
    assert found.passed, found.sentence
    assert found.confirmed > 0
    assert (tmp_path / "out" / "model" / "model_columns.h").is_file()
    _attack(tmp_path / "out", folder)
    _predicts(tmp_path / "out", folder, tmp_path)


def _attack(out: Path, folder: Path) -> None:
    """Tries corners of certified boxes, of the features that may change, in the deployed file: none moves the answer beyond delta."""
    certificate = json.loads((out / "certificate" / "certificate.json").read_text())
    about = certificate["property"]
    radii = np.array([float(Fraction(about["epsilon"]) * Fraction(scale)) for scale in about["scales"]])
    spec = Data.model_validate({"name": "own", "path": "own.csv", "target": "price", "kind": "regression"})
    x = load(spec, folder, 0).test.inputs().reshape(-1, len(radii))
    session = onnxruntime.InferenceSession(out / "model" / "model.fp32.onnx")

    def answer(points: np.ndarray) -> np.ndarray:
        given = points.reshape(-1, len(radii), 1, 1).astype(np.float32)
        return session.run(None, {session.get_inputs()[0].name: given})[0].ravel()

    certified = [claim["id"] for claim in certificate["claims"] if claim["verdict"] == "certified"]
    assert certified
    assert (radii[1:] == 0).all()
    for number in certified[:20]:
        steps = np.linspace(-1, 1, 41)[:, None] * radii * (1 - 1e-6)
        moved = answer((x[number] + steps).clip(0, 1)) - answer(x[number : number + 1])
        assert np.abs(moved).max() <= float(Fraction(about["delta"]))


def _predicts(out: Path, folder: Path, scratch: Path) -> None:
    """Predicts test rows: as the certificate says of them, and no point within a radius or region is beyond the bound that is printed."""
    spec = Data.model_validate({"name": "own", "path": "own.csv", "target": "price", "kind": "regression"})
    x = load(spec, folder, 0).test.inputs()[:6]
    np.savez(scratch / "rows.npz", x=x)
    certificate = json.loads((out / "certificate" / "certificate.json").read_text())
    claims = {claim["id"]: claim for claim in certificate["claims"]}
    about, delta = certificate["property"], Fraction(certificate["property"]["delta"])
    session = onnxruntime.InferenceSession(out / "model" / "model.fp32.onnx")

    def answer(points: np.ndarray) -> np.ndarray:
        given = points.clip(0, 1).astype(np.float32)
        return np.concatenate([session.run(None, {session.get_inputs()[0].name: one[None]})[0].ravel() for one in given])

    for epsilon in (about["epsilon"], "1"):
        found = predict(out, [scratch / "rows.npz"], epsilon=epsilon)
        assert found.property.delta == delta
        for number, one in enumerate(found.predictions):
            assert one.value == answer(x[number : number + 1])[0]
            assert one.radius is not None
            assert one.radius > 0
            for radius, most in ((one.radius, delta), (float(Fraction(epsilon)), Fraction(one.change_upper))):
                scales = np.array([float(Fraction(scale)) for scale in about["scales"]]).reshape(x[number].shape)
                steps = np.linspace(-1, 1, 21).reshape(-1, *(1,) * x[number].ndim) * scales * radius * (1 - 1e-6)
                moved = [abs(Fraction(float(value)) - Fraction(one.value)) for value in answer(x[number] + steps)]
                assert max(moved) <= most
            assert one.certified is (Fraction(one.change_upper) < delta)
            if epsilon == about["epsilon"] and claims[number]["verdict"] == "certified":
                assert one.certified
                assert one.radius >= float(Fraction(epsilon)) - 1e-4
    stated = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "predict.schema.json").read_text())
    assert [set(one) for one in found.as_dict()["predictions"]] == [set(stated["properties"]["predictions"]["items"]["properties"])] * 6
    assert cli.run(["predict", str(out), str(scratch / "rows.npz")]) == 0
    assert "change at most" in found._repr_html_()


def test_a_network_of_ones_own_is_certified_on_a_table(folder: Path, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    torch.onnx.export(net.eval(), (torch.zeros(1, 3, 1, 1),), tmp_path / "net.onnx", dynamo=False)
    settings = [one for one in [*SETTINGS, *TABLE] if not one.startswith(("train.epochs", "network", "data.path", "data.name"))]
    result = build(str(tmp_path / "net.onnx"), data=folder / "own.csv", out=tmp_path / "out", settings=settings)
    assert {gate.name for gate in result.gates if gate.passed is False} == {"collapse"}  # it was never trained
    assert recheck(tmp_path / "out", data=str(folder / "own.csv")).passed


def test_verify_asks_about_a_number(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["verify", str(folder / "flat.onnx"), "--data", str(folder / "flat.npz"), "--epsilon", EPSILON, "--jobs", "1"]
    assert cli.run([*asked, "--delta", DELTA, "--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["property"]["delta"] == DELTA
    assert found["summary"]["certified"] > 0
    assert found["regression"]["mean_absolute_error"] < found["regression"]["constant_mean_absolute_error"]
    session = onnxruntime.InferenceSession(folder / "flat.onnx")
    x = np.load(folder / "flat.npz")["x"]
    claims = json.loads((tmp_path / "certificate.json").read_text())["claims"]
    random.seed(0)
    by_hash = {claim["input_sha256"]: claim for claim in claims}
    assert len(by_hash) == len(claims)
    for claim in claims:
        base = next(one for one in x if session.run(None, {session.get_inputs()[0].name: one[None]})[0].item() == claim["value"])
        corners = np.array([[random.choice((-1, 1)) for _ in range(4)] for _ in range(32)]) * float(EPSILON) * (1 - 1e-6)
        given = (base + corners).clip(0, 1).astype(np.float32)
        moved = [abs(session.run(None, {session.get_inputs()[0].name: one[None]})[0].item() - claim["value"]) for one in given]
        assert claim["verdict"] != "certified" or max(moved) <= float(DELTA)
    assert cli.run([*asked, "--delta", DELTA]) == 0
    told = capsys.readouterr().out
    assert "mean absolute error" in told
    assert "largest class" not in told
    assert "clean accuracy" not in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], 'to predict them, set data.kind = "regression"'),
        (["--delta", "0"], "must be above 0"),
        (["--delta", "-1"], "delta"),
        (["--delta", "much"], "delta"),
        (["--delta", "1", "--vnnlib", "there"], "questions about classes"),
    ],
)
def test_questions_that_are_none_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    options = [str(tmp_path / one) if one == "there" else one for one in options]
    assert cli.run(["verify", str(folder / "flat.onnx"), "--data", str(folder / "flat.npz"), "--epsilon", "0.01", *options]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_verify_refuses_tables_and_other_units(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "wide.npz", x=10 * np.load(folder / "flat.npz")["x"], y=np.load(folder / "flat.npz")["y"])
    for place, words in (
        (tmp_path / "wide.npz", "must lie in [0, 1]"),
        (folder / "own.csv", "the network on it with `vsparse build"),
    ):
        assert cli.run(["verify", str(folder / "flat.onnx"), "--data", str(place), "--epsilon", "0.01", "--delta", "1"]) == 2
        assert words in capsys.readouterr().err


def test_models_speaks_of_a_number_and_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "regression"]) == 0
    told = capsys.readouterr().out
    assert "kind: regression: one number is predicted, and its error counts" in told
    assert "one number to predict" in told
    assert "classes" not in told
    assert cli.run(["models", "regression", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"]["kind"], found["dataset"]["classes"], found["network"]["weights"]) == ("regression", None, 11_100)
    assert cli.run(["models", "tabular"]) == 0
    assert "kind: classification" in capsys.readouterr().out
