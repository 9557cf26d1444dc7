"""Products as convolutions for TensorRT: the same sums, term by term, in one layer each."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from precision_nets import random_net

from vsparse.bounds import Rounding, ball, crown, interval
from vsparse.contract import contract
from vsparse.graph import Graph, run, to_onnx
from vsparse.graph.ir import Add, Conv, Gemm, Relu, Reshape
from vsparse.reading import check_written
from vsparse.stages.export import as_convolutions, check_runtime_graph, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.export.quantise import quantise


def layers() -> Graph:
    """A network of products alone: one behind another, behind a Relu, read twice, and an addition."""
    rng = np.random.default_rng(0)
    params = {"w1": rng.normal(size=(5, 4)), "b1": rng.normal(size=5), "w2": rng.normal(size=(5, 5)), "w3": rng.normal(size=(3, 5))}
    nodes = (
        Gemm(name="g1", inputs=("x",), shape=(5,), weight="w1", bias="b1"),
        Relu(name="r1", inputs=("g1",), shape=(5,)),
        Gemm(name="g2", inputs=("r1",), shape=(5,), weight="w2", bias=None),
        Add(name="a", inputs=("g2", "r1"), shape=(5,)),
        Relu(name="r2", inputs=("a",), shape=(5,)),
        Gemm(name="g3", inputs=("r2",), shape=(3,), weight="w3", bias=None),
    )
    return Graph("x", (4,), nodes, "g3", {name: value.astype(np.float32) for name, value in params.items()})


GRAPHS = {"layers": layers(), **{f"random {seed}": random_net(np.random.default_rng(seed)) for seed in range(4)}}


@pytest.mark.parametrize("name", GRAPHS)
def test_values_bounds_and_files_are_the_same(name, tmp_path):
    graph = GRAPHS[name]
    other, rng = as_convolutions(graph), np.random.default_rng(1)
    assert [node.name for node in other.nodes if isinstance(node, Gemm)] == (["g2"] if name == "layers" else [])
    x = torch.from_numpy(rng.random((6, *graph.input_shape), dtype=np.float32)).double()
    one, two = (run(each, each.tensors(torch.float64), x) for each in (graph, other))
    assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)
    identity = torch.eye(one.shape[1], dtype=torch.float64).expand(len(x), -1, -1)
    found = []
    for each in (graph, other):
        rounding, box = Rounding(each, contract("fp32")), ball(x.float(), 0.01, (0.0, 1.0))
        boxes = interval(each, rounding.params, box, rounding)
        found.append((*boxes[each.output], crown(each, rounding.params, box, identity, boxes, rounding)))
    for first, second in zip(*found, strict=True):
        assert torch.allclose(first, second, rtol=1e-9, atol=1e-9)
    path = tmp_path / "model.onnx"
    write_onnx(other, path, 17, {})
    assert sum(node.op_type in ("Gemm", "MatMul") for node in onnx.load(path).graph.node) == (name == "layers")
    check_written(path, other, source=graph, exact=True)
    assert check_runtime_graph(path).foldable == ()


def test_a_relu_stays_beside_its_convolution_and_vectors_are_made_where_they_are_read():
    nodes = as_convolutions(layers()).nodes
    made = {node.name: node for node in nodes}
    assert isinstance(made["r1.map"], Relu)
    assert made["r1.map"].inputs == ("g1.map",)
    assert made["g2"].inputs == ("r1",)
    assert [node.name for node in nodes if isinstance(node, Reshape)] == ["x.map", "r1", "r2.map", "g3"]
    assert all(node.weight for node in nodes if isinstance(node, Conv))


def test_other_forms_are_made_of_it():
    graph = as_convolutions(GRAPHS["random 0"])
    to_onnx(half(graph, wide_sums=True))
    samples = np.random.default_rng(0).random((8, *graph.input_shape), dtype=np.float32)
    to_onnx(quantise(graph, samples, "int8-tensorrt"))
