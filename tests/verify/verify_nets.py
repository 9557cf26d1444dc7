"""Small networks and datasets for the tests of verification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsparse.data import Dataset
from vsparse.graph import Gemm, Graph, Relu, Reshape, to_onnx


def dataset_of(pixels: np.ndarray, labels: list[int], classes: int) -> Dataset:
    """Returns float samples [n, *shape] as a dataset of one-channel images."""
    x = np.asarray(pixels, dtype=np.float32)
    return Dataset(x.reshape(len(x), 1, 1, x.shape[1]), 1.0, np.array(labels, dtype=np.int64), tuple(str(i) for i in range(classes)), None)


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
