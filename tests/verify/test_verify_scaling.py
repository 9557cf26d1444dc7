"""A file that expects inputs of another scale is told as one, and the advice works; clean accuracy stands beside the largest class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from vsparse import cli
from vsparse.data import Splits, load
from vsparse.graph import Gemm, Graph, Reshape, from_torch, to_onnx, validate
from vsparse.networks import Normalise
from vsparse.recipe import Data
from vsparse.stages.verify.scaling import other_scaling


def trained(scale: nn.Module, splits: Splits) -> nn.Module:
    """A small classifier of digits that was trained on scaled inputs."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    with torch.no_grad():
        network[1].bias.uniform_(-8, 8)  # so that the scale of the inputs matters
    x, labels = scale(torch.from_numpy(splits.train.inputs())), torch.from_numpy(splits.train.labels)
    optimiser = torch.optim.LBFGS(network.parameters(), max_iter=40)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = nn.functional.cross_entropy(network(x), labels)
        value.backward()
        return value

    optimiser.step(loss)
    return network


def write(module: nn.Module, path: Path) -> Path:
    path.write_bytes(to_onnx(from_torch(module, (1, 8, 8))).SerializeToString())
    return path


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(Data(), None, 0)


STANDARD, SYMMETRIC, BYTES = Normalise((0.305,), (0.376,)), Normalise((0.5,), (0.5,)), Normalise((0.0,), (1 / 255,))


CASES = [(STANDARD, "standardised by mean"), (SYMMETRIC, "from -1 to 1"), (BYTES, "from 0 to 255")]


@pytest.mark.parametrize(("scale", "name"), CASES)
def test_a_file_of_another_scale_is_told_and_the_advice_works(splits: Splits, tmp_path: Path, scale: nn.Module, name: str) -> None:
    network = trained(scale, splits)
    sentence = other_scaling(write(network, tmp_path / "m.onnx"), splits, 0)
    assert f"on values {name}" in sentence
    advised = eval(sentence.partition("in PyTorch: ")[2], {"torch": torch, "vsparse": __import__("vsparse"), "network": network})
    assert other_scaling(write(advised, tmp_path / "n.onnx"), splits, 0) == ""
    with torch.no_grad():
        better, before = (
            (one(torch.from_numpy(splits.test.inputs())).argmax(1).numpy() == splits.test.labels).mean() for one in (advised, network)
        )
    assert better > before + 0.05


def test_a_file_of_the_right_scale_is_not(splits: Splits, tmp_path: Path) -> None:
    assert other_scaling(write(trained(nn.Identity(), splits), tmp_path / "m.onnx"), splits, 0) == ""
    untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert other_scaling(write(untrained, tmp_path / "u.onnx"), splits, 40) == ""  # no way is better than luck on 40 samples


def test_the_terminal_and_json_say_it(splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(trained(BYTES, splits), tmp_path / "m.onnx")
    command = ["verify", str(path), "--data", "digits", "--epsilon", "0", "--samples", "150"]
    assert cli.run(command) == 0
    out = capfd.readouterr().out
    assert "clean accuracy" in out
    assert "largest class, a constant answer, " in out
    assert "so the file seems to expect those; give --mean 0 --std 0.003922, or put the scaling into the network" in out
    assert cli.run([*command, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert "seems to expect" in found["note"]
    against = found["against_majority"]
    assert against["majority"] == max(np.bincount(splits.test.labels[:150]))
    assert against["correct"] == found["summary"]["correct"]


def test_one_answer_for_all_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    params = {"w": np.zeros((10, 64), np.float32), "b": np.eye(10, dtype=np.float32)[3]}
    nodes = (Reshape(name="f", inputs=("x",), shape=(64,)), Gemm(name="y", inputs=("f",), shape=(10,), weight="w", bias="b"))
    (tmp_path / "m.onnx").write_bytes(to_onnx(validate(Graph("x", (1, 8, 8), nodes, "y", params))).SerializeToString())
    assert cli.run(["verify", str(tmp_path / "m.onnx"), "--data", "digits", "--epsilon", "0.01", "--samples", "60"]) == 0
    out = capfd.readouterr().out
    assert "all 60 predictions are one class" in out


def test_where_test_samples_are_drawn_from_training_ones_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=random.integers(0, 255, (60, 8, 8), dtype=np.uint8), y=np.arange(60) % 10)
    write(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "m.onnx")
    assert cli.run(["verify", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "own.npz"), "--epsilon", "0.01"]) == 0
    said = capfd.readouterr().err
    assert (
        "test samples: drawn out of own.npz, 20 % of each class of its 60 samples, by seed 0; a network may have been trained on them"
        in said
    )


def test_mean_and_std_go_before_the_network(splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = trained(STANDARD, splits)
    path = write(network, tmp_path / "m.onnx")
    command = ["verify", str(path), "--data", "digits", "--epsilon", "0", "--samples", "60", "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--mean", "0.305", "--std", "0.376", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert "certified is m.onnx behind a normalisation by mean 0.305 and std 0.376" in found["note"]
    written = tmp_path / "out" / "m.normalised.onnx"
    assert found["model"]["file"] == written.name
    x = splits.test.inputs(slice(0, 60))
    session = onnxruntime.InferenceSession(written.read_bytes(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        wanted = network(STANDARD(torch.from_numpy(x))).numpy()
    assert np.allclose(logits, wanted, atol=1e-4)
    assert found["summary"]["correct"] == int((wanted.argmax(1) == splits.test.labels[:60]).sum())
    for wrong, words in (
        (["--mean", "a", "--std", "1"], "no list of numbers"),
        (["--mean", "0.5", "--std", "0"], "positive"),
        (["--mean", "0.5"], "--std 0"),
        (["--mean", "1,2", "--std", "1,2"], "1 channels"),
    ):
        assert cli.run([*command, *wrong]) == 2
        assert words in capfd.readouterr().err


def test_a_network_that_guesses_is_told_what_may_be_missing(splits: Splits, tmp_path: Path) -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(constant[1].weight)
    sentence = other_scaling(write(constant, tmp_path / "c.onnx"), splits, 0)
    assert "not above a constant answer" in sentence
    assert "--mean and --std" in sentence
