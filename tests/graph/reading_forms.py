"""Random files of the deployed forms, and what is compared of each: QDQ files as quantisers write them, and float16 and bfloat16 ones.

QDQ files quantise every activation that a kernel on integers reads, to uint8 or int8, and weights to int8 by tensor or by channel, with
int32 biases, or, as TensorRT reads them, float32 ones; they have residual additions, pools, concatenations of branches on one scale,
padding and strides. Typed files compute in float16, or store weights in bfloat16. What is legal for a runtime and in no contract is drawn
too, and must then be refused.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from reading_attack import Outcome, compare, opened, points, reason, session
from reading_graphs import File

from vsparse.bounds import Rounding, interval
from vsparse.contract import CONTRACTS
from vsparse.errors import GateError, InputError
from vsparse.graph import Reading, read_onnx
from vsparse.graph.quantised import integer_contract, is_quantised
from vsparse.stages.export.runtime_graph import LEVELS, check_runtime_graph

Shape = tuple[int, ...]
FORMS = ("qdq", "qdq", "fp16", "bf16")


class FormWriter:
    """Writes one file; `grid` says on which scale and zero point an activation lies, where it is quantised."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.form = rng, str(rng.choice(FORMS))
        self.opset = int(rng.integers(13, 22))
        self.kind: Any = np.uint8 if rng.random() < 0.5 else np.int8
        self.by_channel, self.symmetric = rng.random() < 0.5, rng.random() < 0.5
        self.bits = 127 if rng.random() < 0.15 else 64
        self.float_biases = self.chance(0.15)
        if self.float_biases:
            self.kind, self.symmetric, self.bits = np.int8, True, 127
        self.moved: dict[str, tuple[np.float32, int]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.grid: dict[str, tuple[np.float32, int]] = {}
        self.operators: list[str] = []

    @property
    def quantised(self) -> bool:
        return self.form == "qdq"

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def store(self, value: NDArray[Any]) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def numbers(self, value: NDArray[Any]) -> str:
        """Stores float numbers in the form's type, behind a Cast where that is bfloat16."""
        value = np.asarray(value, np.float32)
        if self.form != "bf16":
            return self.store(value.astype(np.float16) if self.form == "fp16" else value)
        name = f"c{len(self.tensors)}"
        bits = (value.view(np.uint32) >> 16).astype(np.uint16)
        self.tensors.append(helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, bits.tobytes(), raw=True))
        return self.emit("Cast", [name], to=TensorProto.FLOAT)

    def emit(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"n{len(self.nodes)}", **attributes))
        self.operators.append(kind)
        return output

    def pair(self, x: str, grid: tuple[np.float32, int] | None = None) -> str:
        """Returns x behind QuantizeLinear and DequantizeLinear, on a grid of its own or a given one; x itself in other forms."""
        if not self.quantised or (x in self.grid and grid in (None, self.grid[x])):
            return x
        if grid is None and x in self.moved and self.chance(0.85):
            grid = self.moved[x]
        if grid is None:
            scale = np.float32(2.0 ** self.rng.uniform(-8, -3))
            middle = (
                0
                if self.symmetric and self.kind is np.int8
                else int(self.rng.integers(np.iinfo(self.kind).min, np.iinfo(self.kind).max + 1))
            )
            grid = (scale, middle)
        parts = [self.store(grid[0]), self.store(np.array(grid[1], self.kind))]
        made = self.emit("DequantizeLinear", [self.emit("QuantizeLinear", [x, *parts]), *parts])
        self.grid[made] = grid
        return made

    def affine(self, x: str, shape: Shape, axis: int, biased: bool) -> list[str]:
        """Returns weight and bias of an operator that reads x."""
        outputs = shape[axis]
        weight = self.rng.normal(size=shape)
        weight[self.rng.random(shape) < 0.3] = 0
        if not self.quantised:
            return [self.numbers(weight), *([self.numbers(self.rng.normal(size=outputs))] if biased else [])]
        along = tuple(i for i in range(len(shape)) if i != axis)
        most = np.maximum(np.abs(weight).max(axis=along) if self.by_channel else np.full((), np.abs(weight).max()), 2.0**-10)
        scale = (most / self.bits).astype(np.float32)
        spread = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if self.by_channel else scale
        q = np.clip(np.round(weight / spread), -self.bits, self.bits).astype(np.int8)
        size = {"axis": axis} if self.by_channel else {}
        made = [self.emit("DequantizeLinear", [self.store(q), self.store(scale), self.store(np.zeros(scale.shape, np.int8))], **size)]
        if biased and self.float_biases:
            made.append(self.store(self.rng.normal(size=outputs).astype(np.float32)))
        elif biased:
            of_bias = np.asarray(self.grid[x][0] * scale, np.float32)
            of_bias = of_bias * np.float32(1.25) if self.chance(0.03) else of_bias
            b = np.round(self.rng.normal(size=outputs) / of_bias).astype(np.int32)
            zero = self.store(np.zeros(of_bias.shape, np.int32))
            made.append(
                self.emit("DequantizeLinear", [self.store(b), self.store(of_bias), zero], **({"axis": 0} if self.by_channel else {}))
            )
        return made

    def activation(self, x: str) -> str:
        pick = self.rng.random()
        if pick < 0.45:
            return self.emit("Relu", [x])
        if pick < 0.6:
            low, high = sorted(self.rng.normal(size=2))
            ends = [np.asarray(end, np.float16 if self.form == "fp16" else np.float32) for end in (low, high + 0.5)]
            return self.emit("Clip", [x, *(self.store(end) for end in ends)])
        if pick < 0.7 and not self.quantised:
            return self.emit("LeakyRelu", [x], alpha=0.125)
        return x

    def block(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """Appends one block to a map of shape [c, h, w]."""
        c, h, w = shape
        pick = self.rng.random()
        if pick < 0.4 or (h < 2 or w < 2):
            out, k = int(self.rng.integers(1, 5)), int(self.rng.choice([1, min(3, h, w)]))
            groups = c if self.chance(0.2) else 1
            out = c if groups > 1 else out
            x = self.pair(x)
            pads = [int(self.rng.integers(0, k)) for _ in range(4)] if self.chance(0.4) else [0] * 4
            step = 2 if self.chance(0.2) else 1
            inputs = [x, *self.affine(x, (out, c // groups, k, k), 0, self.chance(0.7))]
            made = self.emit("Conv", inputs, group=groups, pads=pads, strides=[step, step])
            h, w = (h + pads[0] + pads[2] - k) // step + 1, (w + pads[1] + pads[3] - k) // step + 1
            return self.activation(made), (out, h, w)
        if pick < 0.6:
            return self.residual(x, shape)
        if pick < 0.75:
            return self.joined(x, shape)
        kind = str(self.rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool"], p=[0.5, 0.3, 0.2]))
        x = self.pair(x) if kind != "MaxPool" or self.chance(0.7) else x
        if kind == "GlobalAveragePool":
            return self.emit(kind, [x]), (c, 1, 1)
        made = self.emit(kind, [x], kernel_shape=[2, 2], strides=[2, 2])
        if kind == "MaxPool" and x in self.grid:
            self.moved[made] = self.grid[x]
            made = self.pair(made, self.grid[x]) if self.chance(0.7) else made
        return made, (c, (h - 2) // 2 + 1, (w - 2) // 2 + 1)

    def residual(self, x: str, shape: Shape) -> tuple[str, Shape]:
        c = shape[0]
        x = self.pair(x)
        branch = self.activation(self.emit("Conv", [x, *self.affine(x, (c, c, 1, 1), 0, self.chance(0.7))]))
        branch = self.pair(branch, self.grid.get(x) if self.chance(0.4) else None)
        both = [branch, x] if self.chance(0.5) else [x, branch]
        made = self.emit("Add", both)
        return (self.emit("Relu", [made]) if self.chance(0.6) else made), shape

    def joined(self, x: str, shape: Shape) -> tuple[str, Shape]:
        """Appends two branches, put together on one scale, as kernels want it, or each on its own."""
        c = shape[0]
        x = self.pair(x)
        ends = [self.emit("Conv", [x, *self.affine(x, (2, c, 1, 1), 0, self.chance(0.5))]) for _ in range(2)]
        if self.quantised:
            first = self.pair(ends[0])
            ends = [first, self.pair(ends[1], self.grid[first] if self.chance(0.8) else None)]
        made = self.emit("Concat", ends, axis=1)
        if self.quantised and self.grid[ends[0]] == self.grid[ends[1]]:
            self.moved[made] = self.grid[ends[0]]
            made = self.pair(made, self.grid[ends[0]]) if self.chance(0.5) else made
        return made, (4, *shape[1:])

    def file(self) -> File:
        shape: Shape = (int(self.rng.integers(1, 4)), int(self.rng.integers(3, 7)), int(self.rng.integers(3, 7)))
        declared, here = shape, "x"
        if self.form == "fp16":
            here = self.emit("Cast", [here], to=TensorProto.FLOAT16)
        for _ in range(int(self.rng.integers(1, 5))):
            here, shape = self.block(here, shape)
        if self.quantised and self.chance(0.5):
            here = self.pair(here)
        flat = self.emit("Flatten", [here], axis=1)
        if here in self.grid:
            flat = self.pair(flat, self.grid[here]) if self.chance(0.85) else flat
            self.grid[flat] = self.grid[here]
        elif here in self.moved:
            self.moved[flat] = self.moved[here]
        flat, n = self.pair(flat), prod(shape)
        pick = self.rng.random()
        if pick < 0.5:
            here = self.emit("Gemm", [flat, *self.affine(flat, (3, n), 0, self.chance(0.7))], transB=1)
        elif pick < 0.75:
            here = self.emit("Gemm", [flat, *self.affine(flat, (n, 3), 1, self.chance(0.7))])
        else:
            here = self.emit("MatMul", [flat, *self.affine(flat, (n, 3), 1, False)])
        here = self.pair(here) if self.quantised and self.chance(0.3) else here
        here = self.emit("Cast", [here], to=TensorProto.FLOAT) if self.form == "fp16" else here
        batch: list[Any] = ["n"] if self.chance(0.5) else [1]
        graph = helper.make_graph(
            self.nodes,
            self.form,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*batch, *declared])],
            [helper.make_tensor_value_info(here, TensorProto.FLOAT, [*batch, 3])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        fixed = 1 if batch == [1] else None
        return File(model.SerializeToString(), fixed, declared, self.opset, self.operators, self.form == "fp16", self.quantised)


def form_file(seed: int, i: int) -> File:
    """Returns file i of a seed."""
    return FormWriter(np.random.default_rng([seed, i, 7])).file()


def attack_form(file: File, rng: np.random.Generator) -> Outcome:
    """Returns what became of a file: read, its values in the enclosures of the form's contract at every level, its graph the runtime's."""
    try:
        reading = read_onnx(file.data)
        integers = integer_contract(reading.graph) if file.quantised and is_quantised(reading.graph) else "int8"
        rounding = Rounding(reading.graph, CONTRACTS[integers if file.quantised else "fp16" if file.half else "fp32"])
    except InputError as error:
        return Outcome("refused", reason(str(error)))
    # What TensorRT reads ONNX Runtime executes as it stands; its own kernels on integers are in another contract.
    levels = [] if file.quantised and integers != "int8" else list(LEVELS)[1:]
    gate = _gate(file)
    if gate is not None:
        return gate
    x = points(file.shape, rng)
    at = torch.from_numpy(x).double()
    boxes = {
        name: (low.numpy(), high.numpy()) for name, (low, high) in interval(reading.graph, rounding.params, (at, at), rounding).items()
    }
    data, names, makers = opened(file.data)
    result = onnx.ModelProto.FromString(file.data).graph.output[0].name
    outcome = Outcome("computed", compared=set(makers.values()), integers=file.quantised)
    try:
        sessions = [(data, "disabled", names), *((file.data, level, [result]) for level in levels)]
        made = [(session(model, _level(level)), level, wanted) for model, level, wanted in sessions]
    except Exception as error:
        return Outcome("refused by runtime", reason(str(error)))
    rows = [slice(i, i + 1) for i in range(len(x))] if file.batch == 1 else [slice(0, len(x)), slice(0, 1)]
    for part in rows:
        for one, level, wanted in made:
            found = dict(zip(wanted, one.run(wanted, {"x": x[part]}), strict=True))
            for name in (name for name in makers if name in found and found[name].dtype.kind == "f"):
                problem = compare(reading, name, found[name], _seen(reading, rounding, boxes, name), part)
                if problem:
                    return Outcome("different", f'{makers[name]} makes "{name}" at level {level}: {problem}')
                outcome.values += found[name].size
    return outcome


def _level(name: str) -> onnxruntime.GraphOptimizationLevel:
    return LEVELS[name]


def _seen(reading: Reading, rounding: Rounding, boxes: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the boxes with that of one tensor widened by what is seen of it, as it may be read by another kernel."""
    activation = reading.tensors[name].activation if name in reading.tensors else None
    if activation is None:
        return boxes
    low, high = (torch.from_numpy(end) for end in boxes[activation])
    error = rounding.read_error(activation, torch.maximum(low.abs(), high.abs()))
    return {activation: ((low - error).numpy(), (high + error).numpy())}


def _gate(file: File) -> Outcome | None:
    """Compares the runtime's graphs with the file; what it makes another network of is refused, and a reading that is wrong differs."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file.onnx"
        path.write_bytes(file.data)
        try:
            check_runtime_graph(path)
        except GateError as error:
            text = str(error).replace(str(path), "FILE")
            return Outcome("different", text) if "is read as another network" in text else Outcome("refused", reason(text[-240:]))
        except InputError as error:
            return Outcome("refused", reason(str(error)))
    return None
