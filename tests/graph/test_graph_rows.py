"""1-D layers as maps of height 1: torch's, ONNX's, and what they become in C, against torch and ONNX Runtime."""

from __future__ import annotations

import random
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from vsparse.errors import InputError
from vsparse.graph import AveragePool, Conv, Gemm, Graph, Relu, Reshape, from_torch, run
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.rows import rows_as_maps
from vsparse.stages.export import write_onnx
from vsparse.stages.export.c_source import CompiledModel, emit_c, simulate


class Sensor(nn.Module):
    """Every 1-D layer, a residual addition, and a mean over the row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 5, padding=2)
        self.norm = nn.BatchNorm1d(8)
        self.act = nn.ReLU()
        self.conv = nn.Conv1d(8, 8, 3, padding="same", dilation=2, groups=2)
        self.pool = nn.MaxPool1d(2)
        self.down = nn.Conv1d(8, 6, 3, stride=2, padding=1, bias=False)
        self.average = nn.AdaptiveAvgPool1d(4)
        self.drop = nn.Dropout1d()
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.pool(torch.relu(self.conv(x) + x))
        return self.head(self.drop(self.average(torch.relu(self.down(x)))).flatten(1))


def drawn(seed: int) -> tuple[nn.Module, tuple[int, int]]:
    """A random network of 1-D layers with statistics of no initialisation, in eval mode."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    channels, length = rng.choice([1, 2, 3]), rng.choice([12, 16, 24])
    shape, layers = (channels, length), []
    for _ in range(rng.randint(2, 5)):
        kind = rng.choice(["conv", "conv", "norm", "relu", "max", "average", "adaptive", "drop"])
        if kind == "conv":
            groups, out = rng.choice([1, channels]), rng.choice([1, 2]) * channels
            pad = rng.choice([0, 1, 2])
            layers.append(nn.Conv1d(channels, out, rng.choice([1, 2, 3]), rng.choice([1, 2]), pad, rng.choice([1, 2]), groups))
            channels = out
        elif kind == "norm":
            layers.append(nn.BatchNorm1d(channels))
            layers[-1].running_mean.uniform_(-1, 1)
            layers[-1].running_var.uniform_(0.5, 2)
        elif kind == "relu":
            layers.append(nn.ReLU())
        elif kind == "max":
            layers.append(nn.MaxPool1d(2, rng.choice([1, 2]), rng.choice([0, 1])))
        elif kind == "average":
            layers.append(nn.AvgPool1d(2, rng.choice([1, 2])))
        elif kind == "adaptive":
            layers.append(nn.AdaptiveAvgPool1d(1))
        else:
            layers.append(nn.Dropout(0.5))
        with torch.no_grad():
            size = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape[2]
        if size < 4:
            break
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size, 3)).eval(), shape


def executed(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_every_layer_follows_the_one_before_it_as_in_a_2d_network():
    graph = fold_batch_norm(from_torch(Sensor().eval(), (3, 32)))
    kinds = [type(node).__name__ for node in graph.nodes]
    assert kinds == ["Reshape", "Conv", "Relu", "Conv", "Add", "Relu", "MaxPool", "Conv", "Relu", "AveragePool", "Reshape", "Gemm"]
    assert graph.node("stem").shape == (8, 1, 32)
    assert graph.params["conv.weight"].shape == (8, 4, 1, 3)


@pytest.mark.filterwarnings("ignore")  # of torch's older exporter
@pytest.mark.parametrize("seed", range(12))
def test_torch_the_graph_the_written_file_and_torchs_own_file_compute_the_same(seed, tmp_path):
    module, shape = drawn(seed)
    x = torch.rand(5, *shape)
    graph = fold_batch_norm(from_torch(module, shape), constants=True)
    with torch.no_grad():
        expected = module(x).numpy()
    write_onnx(graph, tmp_path / "own.onnx", 18, {})
    np.testing.assert_allclose(executed(tmp_path / "own.onnx", x), expected, atol=1e-4, rtol=1e-4)
    torch.onnx.export(module, (x[:1],), tmp_path / "torch.onnx", dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
    read = from_onnx(tmp_path / "torch.onnx")
    maps = rows_as_maps(read)
    before, after = (run(one, one.tensors(torch.float64), x.double()) for one in (read, maps))
    assert torch.equal(before, after)
    np.testing.assert_allclose(before.numpy(), expected, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(one, Reshape) and isinstance(other, Reshape) for one, other in pairwise(maps.nodes))


def test_rows_that_others_read_stay():
    """One row is read as it is by a linear layer and as a map by a convolution; and the output may be a row."""
    nodes = (
        Reshape(name="map", inputs=("x",), shape=(2, 1, 4)),
        Conv(name="conv", inputs=("map",), shape=(2, 1, 4), weight="w", bias=None),
        Reshape(name="row", inputs=("conv",), shape=(2, 4)),
        Relu(name="relu", inputs=("row",), shape=(2, 4)),
        Reshape(name="flat", inputs=("relu",), shape=(8,)),
        Gemm(name="out", inputs=("flat",), shape=(3,), weight="v", bias=None),
    )
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(2, 2, 1, 1)).astype(np.float32), "v": rng.normal(size=(3, 8)).astype(np.float32)}
    x = torch.rand(4, 2, 4, dtype=torch.float64)
    for output in ("out", "relu"):
        graph = Graph("x", (2, 4), nodes[:4] if output == "relu" else nodes, output, params)
        found = rows_as_maps(graph)
        values = [run(one, one.tensors(torch.float64), x) for one in (graph, found)]
        assert torch.equal(*values)
        assert found.shape_of(found.output) == graph.shape_of(output)


@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cc") is None, reason="needs a C compiler")
def test_c_computes_the_stated_bits(tmp_path):
    torch.manual_seed(0)
    graph = fold_batch_norm(from_torch(Sensor().eval(), (3, 32)), constants=True)
    write_onnx(graph, tmp_path / "model.onnx", 18, {})
    read = from_onnx(tmp_path / "model.onnx")
    x = np.random.default_rng(0).random((6, 3, 32), dtype=np.float32)
    emit_c(read).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", (3, 32), 5) as compiled:
        found = compiled.logits(x)
    assert np.array_equal(found, simulate(read, x)[read.output])
    np.testing.assert_allclose(found, executed(tmp_path / "model.onnx", torch.from_numpy(x)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, (2, 8), (None, 4), (4, None)])
def test_an_adaptive_average_pool_that_divides_is_an_average_pool(size):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.AdaptiveAvgPool2d(size), nn.Flatten()).eval()
    graph = from_torch(module, (1, 8, 8))
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    found = run(graph, graph.tensors(torch.float64), x)
    with torch.no_grad():
        assert torch.allclose(found, module.double()(x), atol=1e-12)
    assert sum(isinstance(node, AveragePool) for node in graph.nodes) == 1


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (nn.AdaptiveAvgPool2d(3), (1, 8, 8), 'layer "0" (AdaptiveAvgPool2d) makes [3, 3] of a map of [8, 8] with windows of several sizes'),
        (nn.AdaptiveAvgPool1d(5), (2, 8), 'layer "0" (AdaptiveAvgPool1d) makes [1, 5] of a map of [1, 8] with windows of several sizes'),
        (nn.AvgPool1d(2, padding=1), (2, 8), "must have padding=0"),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), (2, 8), 'use padding_mode="zeros"'),
        (nn.Conv1d(2, 2, 3), (2, 8, 8), "takes [channels, n] of each sample, not shape [2, 8, 8]"),
        (nn.ConvTranspose1d(2, 2, 3), (2, 8), "use Conv1d"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(layer, shape, says):
    with pytest.raises(InputError) as refusal:
        from_torch(nn.Sequential(layer, nn.Flatten()), shape)
    assert says in str(refusal.value)
