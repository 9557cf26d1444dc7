"""Random small ONNX files over the operators that are read, neighbours that a runtime may fuse among them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class RandomFile:
    """A chain with branches; `steps` names what was put where, for messages."""

    def __init__(self, seed: int, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.steps: list[str] = []

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def tensor(self, value: Any) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = np.asarray(value)
        return name

    def normal(self, *shape: int) -> str:
        return self.tensor(self.rng.normal(size=shape).astype(np.float32))

    def add(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"n{len(self.nodes)}", **attributes))
        self.shapes[output] = shape
        self.steps.append(kind)
        return output

    def bytes(self, length: int, shape: tuple[int, ...]) -> bytes:
        """Returns a file of about `length` operators on an input of that shape."""
        self.shapes["x"] = shape
        here, seen = "x", ["x"]
        for _ in range(length):
            here = self.step(here, seen)
            seen.append(here)
        last = self.shapes[here]
        here = self.add("Flatten", [here], (prod(last),)) if len(last) > 1 else here
        if self.rng.random() < 0.5:
            here = self.add("Gemm", [here, self.normal(prod(last), 3), self.normal(3)], (3,))
        if here == "x":
            here = self.add("Relu", [here], self.shapes["x"])
        final = prod(self.shapes[here])
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info(here, TensorProto.FLOAT, ["batch", final])],
            [numpy_helper.from_array(value, name) for name, value in self.tensors.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8).SerializeToString()

    def step(self, x: str, seen: list[str]) -> str:
        shape = self.shapes[x]
        kinds = ["constant"] * 4 + ["curve"] * 4 + ["move"] * 3 + ["residual"] * 2
        kinds += ["map"] * 7 if len(shape) == 3 else ["linear"] * 4 if len(shape) == 1 else ["row"] * 2
        return getattr(self, self.pick(*kinds))(x, seen)

    def constant(self, x: str, seen: list[str]) -> str:
        shape = self.shapes[x]
        kind = self.pick("Mul", "Mul", "Add", "Add", "Sub", "Div")
        forms = [(), (1,), shape, shape[-1:]]
        if len(shape) == 3:
            forms += [(shape[0], 1, 1)] * 4 + [(1, shape[0], 1, 1), (1, 1, 1)]
        size = self.pick(*forms)
        value = self.rng.normal(size=size).astype(np.float32)
        if kind == "Div":
            value = np.asarray(np.where(np.abs(value) < 0.1, 1, value), np.float32)
        if self.rng.random() < 0.05:
            value = np.full_like(value, self.pick(1, 2, 0.5) if kind in ("Mul", "Div") else 0)
        return self.add(kind, [x, self.tensor(value)], shape)

    def curve(self, x: str, seen: list[str]) -> str:
        shape = self.shapes[x]
        kind = self.pick("Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Neg", "Identity", "Dropout", "PRelu")
        if kind == "Clip":
            low, high = sorted(self.rng.normal(size=2).astype(np.float32))
            low = self.pick(low, np.float32(0))
            return self.add("Clip", [x, self.tensor(np.float32(low)), self.tensor(np.float32(max(low, high)))], shape)
        if kind == "PRelu":
            return self.add("PRelu", [x, self.tensor(np.full((1,), 0.25, np.float32))], shape)
        return self.add(kind, [x], shape, **({"alpha": 0.1} if kind == "LeakyRelu" else {}))

    def residual(self, x: str, seen: list[str]) -> str:
        same = [name for name in seen if self.shapes[name] == self.shapes[x]]
        other = self.pick(*same)
        return self.add(self.pick("Add", "Add", "Sub"), [x, other] if self.rng.random() < 0.5 else [other, x], self.shapes[x])

    def linear(self, x: str, seen: list[str]) -> str:
        (n,) = self.shapes[x]
        m = self.pick(n, 5, 8)
        if self.rng.random() < 0.6:
            return self.add("MatMul", [x, self.normal(n, m)], (m,))
        transposed = self.pick(0, 1)
        bias = [self.normal(m)] if self.rng.random() < 0.7 else []
        weight = self.normal(m, n) if transposed else self.normal(n, m)
        return self.add("Gemm", [x, weight, *bias], (m,), transB=transposed)

    def row(self, x: str, seen: list[str]) -> str:
        c, n = self.shapes[x]
        kind = self.pick("Conv", "MaxPool", "AveragePool", "Pad", "GlobalAveragePool")
        if kind == "Pad" or n < 3:
            return self.add("Pad", [x, self.tensor(np.array([0, 0, 1, 0, 0, 1], np.int64))], (c, n + 2))
        if kind == "Conv":
            return self.add("Conv", [x, self.normal(4, c, 3), self.normal(4)], (4, n), pads=[1, 1])
        if kind == "GlobalAveragePool":
            return self.add(kind, [x], (c, 1))
        return self.add(kind, [x], (c, n - 1), kernel_shape=[2])

    def map(self, x: str, seen: list[str]) -> str:
        c, h, w = self.shapes[x]
        kind = self.pick(*["Conv"] * 6, "MaxPool", "AveragePool", "Pad", "Pad", "GlobalAveragePool", "ReduceMean", "ReduceSum")
        if kind == "Conv":
            groups = self.pick(1, 1, c)
            k = self.pick(1, 3) if min(h, w) >= 3 else 1
            out = c if groups > 1 else self.pick(c, 4, 8, 16, 20)
            bias = [self.normal(out)] if self.rng.random() < 0.6 else []
            return self.add("Conv", [x, self.normal(out, c // groups, k, k), *bias], (out, h, w), pads=[k // 2] * 4, group=groups)
        if kind in ("MaxPool", "AveragePool") and min(h, w) >= 2:
            p = self.pick(0, 1) if kind == "MaxPool" else 0
            size = tuple((n + 2 * p - 2) // 2 + 1 for n in (h, w))
            return self.add(kind, [x], (c, *size), kernel_shape=[2, 2], strides=[2, 2], pads=[p] * 4)
        if kind == "GlobalAveragePool":
            return self.add(kind, [x], (c, 1, 1))
        if kind == "ReduceMean" and self.opset < 18:
            axes = self.pick([2, 3], [1], [3])
            return self.add(kind, [x], tuple(1 if i + 1 in axes else n for i, n in enumerate((c, h, w))), axes=axes)
        if kind == "ReduceSum":
            return self.add(kind, [x, self.tensor(np.array([2, 3], np.int64))], (c, 1, 1))
        value = [] if self.rng.random() < 0.7 else [self.tensor(np.float32(0.5))]
        pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        return self.add("Pad", [x, self.tensor(pads), *value], (c, h + 2, w + 2))

    def move(self, x: str, seen: list[str]) -> str:
        shape = self.shapes[x]
        rank = len(shape)
        kind = self.pick("Transpose", "Transpose", "Flatten", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Split")
        if kind == "Transpose" and rank > 1:
            order = list(self.rng.permutation(rank))
            return self.add("Transpose", [x], tuple(shape[i] for i in order), perm=[0, *(int(i) + 1 for i in order)])
        if kind == "Flatten":
            return self.add("Flatten", [x], (prod(shape),))
        if kind == "Slice" and shape[0] > 1:
            ends = [self.tensor(np.array([one], np.int64)) for one in (1, shape[0], 1)]
            return self.add("Slice", [x, *ends], (shape[0] - 1, *shape[1:]))
        if kind == "Concat" and prod(shape) < 2000:
            return self.add("Concat", [x, x], (2 * shape[0], *shape[1:]), axis=1)
        if kind == "Unsqueeze" and rank < 3:
            axis = int(self.rng.integers(1, rank + 2))
            return self.add("Unsqueeze", [x, self.tensor(np.array([axis], np.int64))], (*shape[: axis - 1], 1, *shape[axis - 1 :]))
        if kind == "Squeeze" and 1 in shape and rank > 1:
            axis = shape.index(1)
            return self.add("Squeeze", [x, self.tensor(np.array([axis + 1], np.int64))], shape[:axis] + shape[axis + 1 :])
        if kind == "Reshape" and rank == 1 and shape[0] % 4 == 0:
            return self.add("Reshape", [x, self.tensor(np.array([0, 4, -1, 1], np.int64))], (4, shape[0] // 4, 1))
        return self.add("Identity", [x], shape)
