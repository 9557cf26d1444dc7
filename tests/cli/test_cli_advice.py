"""Options are honoured or refused, and the ways out that messages name work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vsparse import cli
from vsparse.artifact import TARGET
from vsparse.files import sha256_file
from vsparse.graph import Gemm, Graph, from_onnx, from_torch, run, to_onnx
from vsparse.target import load_target


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(from_torch(network, (1, 8, 8))).SerializeToString())
    return path


@pytest.fixture
def aimed(tiny_artifact: Path, tmp_path: Path) -> Path:
    """An artifact for a Jetson."""
    return aimed_at("jetson-orin-nano", tiny_artifact, tmp_path)


def aimed_at(target: str, tiny_artifact: Path, tmp_path: Path) -> Path:
    directory = Path(shutil.copytree(tiny_artifact, tmp_path / target))
    (directory / TARGET).write_text(load_target(target).to_toml())
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][TARGET] = sha256_file(directory / TARGET)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def said(capfd: pytest.CaptureFixture[str]) -> str:
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    return text


def test_the_recipe_says_how_a_device_measures(tiny_artifact: Path) -> None:
    """Where no option says otherwise, a device measures by the recipe's numbers, which stand in the device folder."""
    timing = json.loads((tiny_artifact / "device" / "manifest.json").read_text())["timing"]
    assert (timing["runs"], timing["threads"], timing["batch"]) == (20, 1, 1)


def test_profile_here_says_that_it_is_not_the_target(aimed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fast = ["--runs", "10", "--seconds", "0.01", "--warmup", "0"]
    assert cli.run(["profile", str(aimed), *fast]) == 0
    assert "), not on jetson-orin-nano (not measured on the target yet; `vsparse profile" in " ".join(capfd.readouterr().out.split())
    assert cli.run(["profile", str(aimed), *fast, "--json"]) == 0
    assert "not on jetson-orin-nano" in json.loads(capfd.readouterr().out)["conditions"]


def test_a_microcontroller_is_not_sent_to_a_host(tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    board = aimed_at("cortex-m4f", tiny_artifact, tmp_path)
    assert cli.run(["profile", str(board), "--runs", "10", "--seconds", "0.01", "--warmup", "0"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "not on cortex-m4f (a microcontroller is measured by its own harness, docs/how-to-microcontroller.md)" in text
    assert cli.run(["profile", str(board), "--host", "robot@192.0.2.1"]) == 2
    assert "docs/how-to-microcontroller.md; leave --host out" in said(capfd)


def test_a_contract_of_two_precisions_is_listed_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["targets"]) == 0
    text = capfd.readouterr().out
    assert "fp32, fp16, int8" in " ".join(text.split())
    assert "fp16, fp32" not in text


@pytest.mark.parametrize("command", ["compress", "export"])
def test_data_of_a_file_is_refused_where_it_says_nothing(
    command: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([command, str(model), "--data", str(tmp_path)]) == 2
    assert {"compress": "--data is for an artifact, or goes with --sparsity", "export": "no data for"}[command] in said(capfd)
    assert cli.run([command, str(model)]) == 0


def test_unit_range_of_an_artifact_is_refused(tiny_artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compress", str(tiny_artifact), "--unit-range"]) == 2
    assert "--unit-range is of an ONNX file" in said(capfd)


OFF = "--set gates.certified_loss=0 --set gates.dense_certified_accuracy=0"


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        (
            ["train.baseline=false"],
            "set it to true, or turn the gate off: --set gates.certified_loss=0 --set gates.dense_certified_accuracy=0",
        ),
        (["train.sparsity=0"], "turn the gate off: --set gates.certified_loss=0 --set gates.dense_certified_accuracy=0"),
    ],
)
def test_gates_that_need_a_parent_are_refused_by_build_alone(
    settings: list[str], way_out: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    assert cli.run(["build", "digits", "--out", str(tmp_path / "a"), *options]) == 2
    assert way_out in said(capfd)
    fast = [part for setting in ("train.epochs=1", "network.architecture=mlp", "network.width=0.5") for part in ("--set", setting)]
    if settings != ["train.baseline=false"]:
        return
    # `train` judges no gate but its own: one epoch may fail that one, and is no usage error.
    assert cli.run(["train", "digits", "--out", str(tmp_path / "b"), *options, *fast]) in (0, 1)
    assert "collapse" in capfd.readouterr().out


def test_a_training_that_learns_nothing_fails_its_gate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ("train.epochs=1", "network.architecture=mlp", "network.width=0.5", "train.learning_rate=1e-9", "train.baseline=false")
    command = ["train", "digits", "--out", str(tmp_path / "a"), *(part for setting in settings for part in ("--set", setting))]
    assert cli.run([*command, "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert [(gate["name"], gate["passed"]) for gate in found["gates"]] == [("collapse", False)]
    assert found["data"]["splits"][2]["origin"].startswith("drawn out of scikit-learn's digits, 20 %")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("first", ["plain", "shifted", "scaled", "neutral"])
def test_export_of_a_batch_norm_that_is_advised_works(tmp_path: Path, first: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the first batch norm, which no layer can take, does: also where its factor is 1 or its term is 0."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(1, eps=2.0**-10)
    network = nn.Sequential(norm, nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    norm.running_var.fill_(1 - norm.eps if first in ("shifted", "neutral") else 0.3)
    norm.running_mean.fill_(0.25 if first in ("shifted", "plain") else 0.0)
    path = tmp_path / "b.onnx"
    keep = torch.onnx.TrainingMode.PRESERVE  # or the exporter folds
    torch.onnx.export(network.eval(), (torch.zeros(1, 1, 8, 8),), path, training=keep, do_constant_folding=False, dynamo=False)
    question = ["--data", "digits", "--epsilon", "0.01", "--samples", "3", "--contract", "real"]
    assert cli.run(["verify", str(path), *question]) == 2
    assert "`vsparse export MODEL` writes the network with it folded" in said(capfd)
    assert cli.run(["export", str(path), "--out", str(tmp_path / "e")]) == 0
    exported = tmp_path / "e" / "model" / "model.fp32.onnx"
    assert cli.run(["verify", str(exported), *question[:-2]]) == 0
    x = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    graph = from_onnx(exported)
    with torch.no_grad():
        assert torch.allclose(run(graph, graph.tensors(), torch.from_numpy(x)), network(torch.from_numpy(x)), atol=1e-5)


def test_export_keeps_the_artifacts_target(aimed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", str(aimed), "--out", str(tmp_path / "e")]) == 0
    assert 'name = "jetson-orin-nano"' in (tmp_path / "e" / TARGET).read_text()
    assert cli.run(["export", str(aimed), "--out", str(tmp_path / "f"), "--target", "local"]) == 0
    assert 'name = "local"' in (tmp_path / "f" / TARGET).read_text()
    capfd.readouterr()


def test_data_notes_are_shown_without_verbose(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "own"
    (folder / "extra").mkdir(parents=True)
    from PIL import Image

    for part in ("train", "test"):
        for name in range(10):
            (folder / part / str(name)).mkdir(parents=True)
            for place in range(2):
                Image.fromarray(np.full((8, 8), 20 * name + place, np.uint8)).save(folder / part / str(name) / f"{place}.png")
    assert cli.run(["verify", str(model), "--data", str(folder), "--epsilon", "0.01"]) == 0
    assert capfd.readouterr().err == 'vsparse: the folder "extra" beside test and train is not read\n'


def test_what_is_missing_on_the_command_line_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["cache"]) == 2
    assert capsys.readouterr().err.endswith("vsparse: no command is given; the commands are listed above\n")
    assert cli.run(["check"]) == 2
    assert capsys.readouterr().err == "vsparse: Missing argument 'directory'; `vsparse check --help` says what it is\n"


def test_pruning_asks_for_what_is_missing_alone(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compress", str(model), "--sparsity", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "give them with --data" in said
    assert "--unit-range" not in said
    assert cli.run(["compress", str(model), "--sparsity", "0.5", "--data", "digits", "--unit-range"]) == 2
    assert "leave --unit-range out" in capsys.readouterr().err


def test_pruning_names_the_model_and_no_key_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = {"w": np.ones((10, 3), np.float32)}
    graph = Graph("x", (3,), (Gemm(name="z", inputs=("x",), shape=(10,), weight="w", bias=None),), "z", params)
    (tmp_path / "m.onnx").write_bytes(to_onnx(graph).SerializeToString())
    assert cli.run(["compress", str(tmp_path / "m.onnx"), "--sparsity", "0.5", "--data", "digits"]) == 2
    said = capsys.readouterr().err
    assert f"model {tmp_path / 'm.onnx'} reads inputs of shape [3]" in said
    assert "train.start" not in said
