"""Small networks whose verdicts are known by hand, and one trained on the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from verify_nets import Writer, dense_graph

from vsparse.bounds import interval
from vsparse.data import Dataset, load
from vsparse.graph import from_torch, to_onnx
from vsparse.recipe import Data


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
