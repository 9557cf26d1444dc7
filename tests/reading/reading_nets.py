"""Small ONNX models for the tests of `vsparse.reading`, written operator by operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Model:
    """Collects ONNX nodes one after the other; `data` is the file."""

    def __init__(self, *shape: int, batch: int | str = "N", seed: int = 0) -> None:
        self.shape, self.batch, self.last = shape, batch, "x"
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def weights(self, *shape: int) -> np.ndarray:
        """Returns normal numbers in float32."""
        return self.rng.standard_normal(shape).astype(np.float32)

    def store(self, value: np.ndarray) -> str:
        """Adds an initializer and returns its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *constants: np.ndarray | str, inputs: list[str] | None = None, name: str = "", **attributes: Any) -> str:
        """Adds a node that reads the last value (or `inputs`) and constants, named like its output; returns that name."""
        name = name or f"n{len(self.nodes)}"
        given = [one if isinstance(one, str) else self.store(one) for one in constants]
        self.nodes.append(helper.make_node(operator, [*(inputs or [self.last]), *given], [name], name=name, **attributes))
        self.last = name
        return name

    def data(self, outputs: int, opset: int = 17) -> bytes:
        """Returns the file, with the last value as its output [batch, outputs]."""
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "net",
            [value("x", TensorProto.FLOAT, [self.batch, *self.shape])],
            [value(self.last, TensorProto.FLOAT, [self.batch, outputs])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def every_operator(batch: int | str = "N") -> bytes:
    """A network of all kinds of operators, on maps that are as high as wide, so that no wrong axis shows in a shape."""
    m = Model(4, 6, 6, batch=batch)
    m.add("Conv", m.weights(4, 4, 3, 3), m.weights(4), name="conv", pads=[1, 2, 1, 0], kernel_shape=[3, 3])
    relu = m.add("Relu", name="relu")
    m.add("Conv", m.weights(4, 1, 3, 3), name="depthwise", pads=[1, 1, 1, 1], group=4, kernel_shape=[3, 3])
    m.add("Add", inputs=[m.last, relu], name="residual")
    m.add("LeakyRelu", name="leaky", alpha=0.25)
    m.add("Transpose", name="transpose", perm=[0, 1, 3, 2])
    m.add("Mul", m.weights(4, 1, 1), name="scale")
    m.add("Add", m.weights(4, 1, 1), name="shift")
    m.add("MaxPool", name="max", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    m.add("Pad", np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64), np.array(0.5, np.float32), name="pad")
    m.add("AveragePool", name="average", kernel_shape=[2, 2], strides=[1, 1])
    lower = m.add("Slice", np.array([0], np.int64), np.array([2], np.int64), np.array([1], np.int64), np.array([1], np.int64), name="lower")
    upper = m.add("Slice", *(np.array([k], np.int64) for k in (2, 4, 1, 1)), inputs=["average"], name="upper")
    m.add("Concat", inputs=[upper, lower], name="concat", axis=1)
    m.add("Sub", inputs=[m.last, "average"], name="difference")
    m.add("Div", m.weights(4, 1, 1) + np.float32(3), name="quotient")
    m.add("Neg", name="negated")
    m.add("Clip", np.array(-1, np.float32), np.array(2, np.float32), name="clip")
    m.add("Flatten", name="flat")
    m.add("Gemm", m.weights(36 * 4, 6) / np.float32(12), m.weights(6), name="gemm")
    m.add("Tanh", name="tanh")
    m.add("MatMul", m.weights(6, 6), name="matmul")
    m.add("Sigmoid", name="sigmoid")
    m.add("BatchNormalization", m.weights(6), m.weights(6), m.weights(6), np.abs(m.weights(6)) + 1, name="norm")
    return m.data(6)


def moved_factor() -> bytes:
    """x · c, a matrix, ReLU, · c again with c = 1e30: ONNX Runtime moves the first factor behind the small matrix and its ReLU."""
    m = Model(4, batch=1)
    factor = m.store(np.array(1e30, np.float32))
    m.add("Mul", factor, name="large")
    m.add("MatMul", np.eye(4, dtype=np.float32) * np.float32(1e-20), name="product")
    m.add("Relu", name="relu")
    m.add("Mul", factor, name="again")
    return m.data(4)
