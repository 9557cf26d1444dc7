"""Two workers of this machine, and a small network that leaves samples to branch and bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from vsparse.cluster.client import started_here
from vsparse.data import load
from vsparse.graph import from_torch, to_onnx
from vsparse.recipe import Data


@pytest.fixture(scope="session")
def two_workers() -> Iterator[str]:
    """The address of a scheduler with two workers of one thread."""
    with started_here(2) as address:
        yield address


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network, trained on the digits without bounds for a second."""
    torch.manual_seed(0)
    train = load(Data(), None, 0).train
    x, y = torch.from_numpy(train.inputs()), torch.from_numpy(train.labels)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(4):
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("network") / "digits.onnx"
    path.write_bytes(to_onnx(from_torch(net, (1, 8, 8))).SerializeToString())
    return path
