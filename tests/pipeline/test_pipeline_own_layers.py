"""Every layer of the tables of docs/how-to-own-network.md goes from torch's, Keras' and scikit-learn's files through build, check and C."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vsparse
from vsparse.pipeline.build import build
from vsparse.stages.export.c_source import CompiledModel

pytestmark = pytest.mark.slow
FEW = (
    "property.samples=24",
    "property.epsilon='0.005'",
    "property.curve_samples=2",
    "property.curve=['0.01']",
    "verify.cross_check=0",
    "verify.attack_restarts=1",
    "verify.attack_steps=3",
    "profile.runs=10",
    "profile.seconds=0.02",
    "export.precisions=[]",
)


class InC(nn.Module):
    """The layers that have a form in C."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([0.25]).view(1, 1, 1))
        self.stem = nn.Conv2d(1, 6, 3, padding="same", dilation=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AvgPool2d(2, 1)
        self.row = nn.Conv1d(6, 8, 3, padding=1)
        self.row_norm = nn.BatchNorm1d(8)
        self.row_pool = nn.MaxPool1d(2, 1)
        self.row_average = nn.AdaptiveAvgPool1d(4)
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(32, 24)
        self.head = nn.Linear(24, 10)
        self.skip = nn.Conv2d(6, 10, 1)
        self.whole = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem((x - self.shift) * 2)))
        x = torch.relu(self.depthwise(x) + x)
        rows = torch.relu(self.row_norm(self.row(self.average(self.pool(x)).flatten(2))))
        rows = self.row_average(self.row_pool(rows))
        return self.head(torch.relu(self.hidden(self.drop(rows.flatten(1))))) + self.whole(self.skip(x)).view(x.size(0), -1)


class Elsewhere(nn.Module):
    """The layers that only ONNX has a form for."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.pool = nn.AvgPool2d((2, 3))  # torch's older exporter writes an adaptive pool only where it still knows the size
        self.hidden = nn.Linear(48, 32)
        self.squash = nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.leaky_relu(self.left(x), 0.1), F.relu6(self.right(x))
        both = torch.cat([a - b, -a], 1)
        first, second = both[:, :4], both[:, 4:]  # the older exporter writes a chunk with arithmetic on sizes
        x = torch.clamp(torch.cat([first, second[:, :, ::1]], 1).permute(0, 1, 3, 2), -1, 2) / 0.5
        x = self.pool(x).flatten(1)
        x = torch.tanh(self.hidden(x))
        return self.head(torch.sigmoid(self.squash(x)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("own-layers")
    found = load_digits()
    x, y = (found.images / 16).astype(np.float32)[:, None], found.target.astype(np.int64)
    np.savez(directory / "train.npz", x=x[:900], y=y[:900])
    np.savez(directory / "test.npz", x=x[900:1000], y=y[900:1000])
    return directory


def trained(module: nn.Module, data: Path, epochs: int = 30) -> nn.Module:
    loaded = np.load(data / "train.npz")
    x, y = torch.from_numpy(loaded["x"]), torch.from_numpy(loaded["y"])
    optimiser = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(90):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimiser.step()
    return module.eval()


def from_torch(module: nn.Module, path: Path, exporter: str) -> Path:
    example = (torch.zeros(1, 1, 8, 8),)
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="torch's newer exporter needs onnxscript")
        torch.onnx.export(module, example, path, dynamo=True, external_data=False)
    else:
        torch.onnx.export(module, example, path, dynamo=False)
    return path


def through(path: Path, data: Path, out: Path) -> np.ndarray:
    """Builds, checks, and returns the logits of the exported model for the test samples, which are those of the source."""
    result = build(str(path), data=data, out=out, settings=list(FEW))
    assert result.passed, [gate for gate in result.gates if gate.passed is False]
    assert vsparse.check(out)
    x = np.load(data / "test.npz")["x"][:20]
    source, deployed = (onnxruntime.InferenceSession(one) for one in (path, out / "model" / "model.fp32.onnx"))
    wide = tuple(source.get_inputs()[0].shape[1:])
    given = x.transpose(0, 2, 3, 1) if wide == (8, 8, 1) else x
    rows = [source.run(None, {source.get_inputs()[0].name: one.reshape(1, *wide)})[0] for one in given]
    found = deployed.run(None, {deployed.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(found, np.concatenate(rows), atol=1e-3, rtol=1e-3)
    return np.asarray(found)


@pytest.mark.filterwarnings("ignore")  # of torch's older exporter
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_layers_with_a_form_in_c(data, tmp_path, exporter):
    torch.manual_seed(0)
    path = from_torch(trained(InC(), data), tmp_path / "in_c.onnx", exporter)
    logits = through(path, data, tmp_path / "out")
    assert (tmp_path / "out" / "certificate" / "sequential" / "certificate.json").is_file()
    if shutil.which("gcc") or shutil.which("cc"):
        with CompiledModel(tmp_path / "out" / "model" / "model.c", (1, 8, 8), 10) as compiled:
            np.testing.assert_allclose(compiled.logits(np.load(data / "test.npz")["x"][:20]), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_layers_of_onnx_alone(data, tmp_path, exporter):
    torch.manual_seed(0)
    path = from_torch(trained(Elsewhere(), data), tmp_path / "elsewhere.onnx", exporter)
    through(path, data, tmp_path / "out")
    assert not (tmp_path / "out" / "model" / "model.c").exists()


def test_a_network_of_keras(data, tmp_path):
    keras = pytest.importorskip("keras", reason="needs Keras and tf2onnx")
    pytest.importorskip("tf2onnx", reason="needs Keras and tf2onnx")
    loaded = np.load(data / "train.npz")
    layers = keras.layers
    net = keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(6, 3, activation="relu"), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(10)]
    )
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(loaded["x"].transpose(0, 2, 3, 1), loaded["y"], epochs=20, verbose=0)
    one = keras.InputSpec(shape=(1, 8, 8, 1), dtype="float32")
    net.export(str(tmp_path / "keras.onnx"), format="onnx", input_signature=[one], verbose=False)
    through(tmp_path / "keras.onnx", data, tmp_path / "out")


def test_a_network_of_scikit_learn(data, tmp_path):
    """As docs/how-to-own-network.md writes it: the weights of an MLPClassifier as layers of torch, which end with the logits."""
    from sklearn.neural_network import MLPClassifier

    loaded = np.load(data / "train.npz")
    fitted = MLPClassifier((32,), max_iter=60, random_state=0).fit(loaded["x"].reshape(-1, 64), loaded["y"])
    layers: list[nn.Module] = [nn.Flatten()]
    for weight, bias in zip(fitted.coefs_, fitted.intercepts_, strict=True):
        layers += [nn.Linear(*weight.shape), nn.ReLU()]
        layers[-2].load_state_dict({"weight": torch.tensor(weight.T), "bias": torch.tensor(bias)})
    net = nn.Sequential(*layers[:-1]).float().eval()
    path = from_torch(net, tmp_path / "sk.onnx", "torchscript")
    found = through(path, data, tmp_path / "out").argmax(1)
    assert (found == fitted.predict(np.load(data / "test.npz")["x"][:20].reshape(-1, 64))).all()
