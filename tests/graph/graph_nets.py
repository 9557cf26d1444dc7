"""Small networks and comparisons that the graph tests share."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.graph import Graph, run


def onnx_logits(model: onnx.ModelProto | bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Runs a model in ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def graph_logits(graph: Graph, x: NDArray[np.float32], dtype: torch.dtype = torch.float64) -> NDArray[np.float64]:
    """Runs a graph in torch."""
    return run(graph, graph.tensors(dtype), torch.from_numpy(x).to(dtype)).double().numpy()


def settle(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Gives batch normalisation statistics and weights that are not the trivial ones, and returns the module in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator)
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.3
            part.weight.data = torch.randn(part.num_features, generator=generator)
            part.bias.data = torch.randn(part.num_features, generator=generator)
    return module.eval()


class Normalise(nn.Module):
    """(x + shift) · scale with buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("shift", -torch.linspace(0.2, 0.6, channels).view(1, -1, 1, 1))
        self.register_buffer("scale", torch.linspace(2, 4, channels).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.shift) * self.scale


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding="same", bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return nn.functional.relu(out)


class ResNet(nn.Module):
    """Normalisation, stem, two residual blocks, pooling, two dense layers: every node type but AveragePool."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise(3)
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.fc1 = nn.Linear(16, 6)
        self.bn = nn.BatchNorm1d(6)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(self.normalise(x)))
        x = self.pool(self.blocks(x))
        x = x.view(x.size(0), -1)
        return self.fc2(self.act(self.bn(self.fc1(self.drop(x)))))


def resnet() -> nn.Module:
    """Returns the residual network with settled statistics, for inputs [3, 8, 8]."""
    torch.manual_seed(0)
    return settle(ResNet(), (3, 8, 8))


class Lambda(nn.Module):
    """A module whose forward is a function of the module and the input."""

    def __init__(self, forward, **parts) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)
