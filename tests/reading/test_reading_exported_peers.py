"""Networks as CTBench and CTRAIN train them, exported to ONNX as their users do: read, with the normalisation inside, and executed.

Their checkpoints hold a state_dict; CTRAIN's own export is `torch.onnx.export(…, opset_version=18, dynamo=False)` with a dynamic batch
in eval mode, and CTBench's networks begin with a layer that subtracts a mean and divides by a deviation, both [1, channels, 1, 1].
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from vsparse.graph import run
from vsparse.graph.from_onnx import from_onnx, read_onnx
from vsparse.reading import check_reading


class MeanAndDeviation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.linspace(0.4, 0.5, channels).view(1, -1, 1, 1), False)
        self.sigma = nn.Parameter(torch.linspace(0.2, 0.3, channels).view(1, -1, 1, 1), False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sigma


def cnn7(channels: int, side: int, width: int, normalised: bool, norm: bool) -> nn.Sequential:
    """The seven-layer network of Shi et al. as both repositories have it; theirs has width 64 and 512 units."""
    layers: list[nn.Module] = [MeanAndDeviation(channels)] if normalised else []
    before = channels
    for after, stride in ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
        before = after
    layers += [
        nn.Flatten(),
        nn.Linear((side // 2) ** 2 * before, 16),
        *([nn.BatchNorm1d(16)] if norm else []),
        nn.ReLU(),
        nn.Linear(16, 10),
    ]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("exporter", ["CTRAIN's", "folded by the exporter", "dynamo"])
@pytest.mark.parametrize(("channels", "normalised", "norm"), [(1, True, True), (3, True, True), (3, False, True), (3, True, False)])
def test_an_exported_network_is_read_and_compared(tmp_path: Path, exporter: str, channels: int, normalised: bool, norm: bool) -> None:
    torch.manual_seed(1)
    module = cnn7(channels, 8, 4, normalised, norm)
    with torch.no_grad():
        module.train()(torch.rand(64, channels, 8, 8))  # running statistics of no initialisation
    module.eval()
    path, x = tmp_path / "peer.onnx", torch.rand(3, channels, 8, 8)
    names = {"input_names": ["input"], "output_names": ["output"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            pytest.importorskip("onnxscript")
            torch.onnx.export(module, (x[:1],), path, dynamo=True, external_data=False)
        else:
            mode = torch.onnx.TrainingMode.EVAL if exporter == "CTRAIN's" else torch.onnx.TrainingMode.PRESERVE
            axes = {"input": {0: "batch_size"}, "output": {0: "batch_size"}}
            torch.onnx.export(module, x, path, opset_version=18, dynamic_axes=axes, training=mode, dynamo=False, **names)
    graph = from_onnx(path)
    found = run(graph, graph.tensors(), x)
    with torch.no_grad():
        torch.testing.assert_close(found, module(x), atol=1e-5, rtol=1e-5)
    session = onnxruntime.InferenceSession(path)
    executed = np.concatenate([session.run(None, {session.get_inputs()[0].name: one[None]})[0] for one in x.numpy()])
    np.testing.assert_allclose(found.numpy(), executed, atol=1e-5, rtol=1e-5)
    assert check_reading(path, read_onnx(path)).as_dict()
