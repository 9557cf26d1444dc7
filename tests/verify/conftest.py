"""Small networks whose verdicts are known by hand, and one trained on the digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vsparse.bounds import interval
from vsparse.data import Dataset, load
from vsparse.graph import Gemm, Graph, Relu, Reshape, from_torch, to_onnx
from vsparse.recipe import Data


def dataset_of(pixels: np.ndarray, labels: list[int], classes: int) -> Dataset:
    """Returns float samples [n, *shape] as a dataset of one-channel images."""
    x = np.asarray(pixels, dtype=np.float32)
    return Dataset(x.reshape(len(x), 1, 1, -1), 1.0, np.array(labels, dtype=np.int64), tuple(str(i) for i in range(classes)), None)


def dense_graph(inputs: int, *layers: tuple[list[list[float]], list[float]]) -> Graph:
    """Returns input [1, 1, n] -> flatten -> Gemm -> ReLU -> ... -> Gemm."""
    nodes: list[Reshape | Gemm | Relu] = [Reshape(name="flat", inputs=("input",), shape=(inputs,))]
    params = {}
    for i, (weight, bias) in enumerate(layers):
        w, b = np.array(weight, dtype=np.float32), np.array(bias, dtype=np.float32)
        params |= {f"w{i}": w, f"b{i}": b}
        nodes.append(Gemm(name=f"z{i}", inputs=(nodes[-1].name,), shape=(len(b),), weight=f"w{i}", bias=f"b{i}"))
        if i + 1 < len(layers):
            nodes.append(Relu(name=f"a{i}", inputs=(f"z{i}",), shape=(len(b),)))
    return Graph(input="input", input_shape=(1, 1, inputs), nodes=tuple(nodes), output=nodes[-1].name, params=params)


@dataclass
class Writer:
    """Writes graphs into a test's folder."""

    folder: Path

    def __call__(self, graph: Graph, name: str = "model.onnx") -> Path:
        path = self.folder / name
        path.write_bytes(to_onnx(graph).SerializeToString())
        return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a graph as an ONNX file and returns its path."""
    return Writer(tmp_path)


@pytest.fixture
def difference(write: Callable[..., Path]) -> Path:
    """A network with logits (x0, x1): at (3/4, 1/4) the label 0 holds for every radius below 1/4, and for no larger one."""
    return write(dense_graph(2, ([[1, 0], [0, 1]], [0, 0])))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The test split of the digits."""
    return load(Data(), None, 0).test


@pytest.fixture(scope="session")
def digits_conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network, trained on the digits with interval bounds for a few seconds."""
    torch.manual_seed(0)
    train = load(Data(), None, 0).train
    x, y = torch.from_numpy(train.inputs()), torch.from_numpy(train.labels)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    graph = from_torch(net, (1, 8, 8))
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    epochs, radius = 16, 0.05
    for epoch in range(epochs):
        reach = radius * min(1.0, epoch / (0.6 * epochs))
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
            box = ((x[batch] - reach).clamp(0, 1), (x[batch] + reach).clamp(0, 1))
            lower, upper = interval(graph, dict(net.named_parameters()), box)[graph.output]
            own = nn.functional.one_hot(y[batch], 10).bool()
            loss = nn.functional.cross_entropy(torch.where(own, lower, upper), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("digits") / "conv.onnx"
    path.write_bytes(to_onnx(from_torch(net, (1, 8, 8))).SerializeToString())
    return path
