"""Writes a graph as an ONNX model that old and new runtimes execute as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vsparse.errors import InputError
from vsparse.graph.bfloat16 import to_bfloat16
from vsparse.graph.core import Graph, Node
from vsparse.graph.operators.affine import Affine
from vsparse.graph.operators.piecewise import Relu
from vsparse.graph.operators.pooling import AveragePool, MaxPool
from vsparse.graph.operators.quantised import FakeQuant, moved_grid
from vsparse.graph.operators.reshape import Reshape
from vsparse.graph.rules import onnx_form

# The file format version that the first runtimes with an opset read (ONNX's versioning table); newer ones read it too.
IR_VERSION = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}

INPUT, OUTPUT = "input", "logits"
# What is written in float32 where sums are wide.
WIDE = (Affine, AveragePool)


def to_onnx(
    graph: Graph, opset: int = 17, metadata: Mapping[str, str] | None = None, name: str = "network", *, bfloat16: bool = False
) -> onnx.ModelProto:
    """Returns a checked ONNX model with the input `input` [batch, *input_shape] and the output `logits`, both float32.

    The batch dimension is symbolic. Nodes and initializers keep the names of the graph; `metadata` becomes metadata_props.
    Nothing is left for a runtime to fold: no constant expressions and no batch normalisation. Parameters with integers are written as
    these, behind DequantizeLinear; a graph that stores fp16 has float16 initializers between a cast of the input and one of the result.
    With wide sums its products and averages are in float32 between casts, and convolutions' weights are float32 initializers.
    With `bfloat16` each float32 parameter is stored in bfloat16, behind a Cast to float32.
    Raises InputError for BatchNorm (fold it first), for a parameter that is no number of the format it is to be stored in, for an opset
    outside 13 to 26, and when the model fails ONNX's checker.
    """
    if opset not in IR_VERSION:
        raise InputError(f"opset {opset} cannot be written; choose one from {min(IR_VERSION)} to {max(IR_VERSION)}")
    writer = _Writer(graph, bfloat16)
    nodes = writer.nodes()
    if graph.output == graph.input:
        nodes = [helper.make_node("Identity", [INPUT], [OUTPUT], name="identity")]
    proto = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *graph.input_shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", *graph.shape_of(graph.output)])],
        initializer=[*(numpy_helper.from_array(value, key) for key, value in writer.initializers.items()), *writer.narrow],
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION[opset],
        producer_name="vsparse",
    )
    if metadata:
        helper.set_model_props(model, dict(metadata))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise several unrelated types
        raise InputError(f"the model for opset {opset} fails ONNX's checker: {str(error).splitlines()[0]}") from error
    return model


class _Writer:
    def __init__(self, graph: Graph, bfloat16: bool) -> None:
        if bfloat16 and graph.storage != "fp32":
            raise InputError(f"the network computes in {graph.storage}; bfloat16 stores the weights of one that computes in float32")
        self.graph, self.bfloat16 = graph, bfloat16
        self.narrow: list[onnx.TensorProto] = []
        self.float_type: type[np.floating[Any]] = np.float16 if graph.storage == "fp16" else np.float32
        self.initializers: dict[str, NDArray[Any]] = {}
        self.names = {graph.input: INPUT, graph.output: OUTPUT}
        taken = {INPUT, OUTPUT, *graph.params}
        for node in graph.nodes:
            if node.name == graph.output:
                continue
            candidate, count = node.name, 1
            while candidate in taken:
                count += 1
                candidate = f"{node.name}_{count}"
            taken.add(candidate)
            self.names[node.name] = candidate
        self.taken = taken
        self.readers = graph.consumers()
        # With wide sums: nodes that were written in float32, activations and parameters in float32, and whether one is just being written.
        self.made_wide: set[str] = set()
        self.widened: dict[str, str] = {}
        self.wide_params: dict[str, str] = {}
        self.computes_in_float = False
        self.before: list[onnx.NodeProto] = []

    def nodes(self) -> list[onnx.NodeProto]:
        """Returns the ONNX nodes of the whole graph, in order."""
        graph, half = self.graph, self.graph.storage == "fp16"
        made: list[onnx.NodeProto] = []
        grids: dict[str, FakeQuant | None] = {}
        raw = self.raw()
        if raw:
            self.widened |= {name: self.names[name] for name in raw}
            self.names[graph.output] = self.free(f"{self.names[graph.output]}.half")
        elif half:
            self.names |= {name: self.free(f"{self.names[name]}.half") for name in (graph.input, graph.output)}
            made.append(helper.make_node("Cast", [INPUT], [self.names[graph.input]], name=self.free("cast.input"), to=TensorProto.FLOAT16))
        for node in graph.nodes:
            if graph.wide_sums and isinstance(node, WIDE):
                made += self.wide(node)
            if node.name in self.made_wide:
                continue
            grids[node.name] = grid = moved_grid(node, grids)
            if isinstance(node, FakeQuant):
                made += self.pair(node, self.names[node.inputs[0]], self.names[node.name])
                continue
            made.append(self.node(node))
            # Runtimes know an operator on integers by the pairs before and behind it.
            if grid is not None and isinstance(node, Reshape | MaxPool) and node.name != graph.output:
                before, self.names[node.name] = self.names[node.name], self.free(f"{self.names[node.name]}.again")
                made += self.pair(grid, before, self.names[node.name])
        if half and self.names[graph.output] != OUTPUT:
            made.append(helper.make_node("Cast", [self.names[graph.output]], [OUTPUT], name=self.free("cast.logits"), to=TensorProto.FLOAT))
        return [*self.before, *made]

    def raw(self) -> set[str]:
        """Returns the input, and reshapes of it, where all that reads them are sums in float32: these are never rounded to float16.

        There are none in a network of one sum, whose file would not show that it is one of float16 numbers.
        """
        if not self.graph.wide_sums or sum(isinstance(node, WIDE) for node in self.graph.nodes) < 2:
            return set()
        found, pending = set[str](), [self.graph.input]
        while pending:
            found.add(name := pending.pop())
            others = [node for node in self.readers[name] if not isinstance(node, WIDE)]
            if not all(isinstance(node, Reshape) for node in others) or name == self.graph.output:
                return set()
            pending += [node.name for node in others]
        return found

    def wide(self, node: Node) -> list[onnx.NodeProto]:
        """Returns a sum of products or an average in float32 between casts, with the Relu behind it (docs/numerics.md, section 8.3).

        What is the output of the network stays in float32.
        """
        (source,) = node.inputs
        made: list[onnx.NodeProto] = []
        if source not in self.widened:
            self.widened[source] = name = self.free(f"{self.names[source]}.wide")
            made.append(helper.make_node("Cast", [self.names[source]], [name], name=name, to=TensorProto.FLOAT))
        readers = self.readers[node.name]
        # Behind it in float32 too: a Relu, or the move that ends the network.
        along = len(readers) == 1 and (
            isinstance(readers[0], Relu) or (isinstance(readers[0], Reshape) and readers[0].name == self.graph.output)
        )
        last = readers[0] if along and node.name != self.graph.output else node
        final = OUTPUT if last.name == self.graph.output else self.free(f"{self.names[last.name]}.wide")
        before = final if last is node else self.free(f"{self.names[node.name]}.wide")
        self.computes_in_float = True
        kind, operands, attributes = onnx_form(node, self)
        self.computes_in_float = False
        made.append(helper.make_node(kind, [self.widened[source], *operands], [before], name=node.name, **attributes))
        if last is not node:
            kind, operands, attributes = onnx_form(last, self)
            made.append(helper.make_node(kind, [before, *operands], [final], name=last.name, **attributes))
        if final == OUTPUT:
            self.names[last.name] = OUTPUT
        else:
            cast = self.free(f"{self.names[last.name]}.cast")
            made.append(helper.make_node("Cast", [final], [self.names[last.name]], name=cast, to=TensorProto.FLOAT16))
        self.made_wide |= {node.name, last.name}
        return made

    def store(self, name: str, value: NDArray[Any]) -> str:
        """Adds an initializer that is no parameter of the graph and returns its name."""
        name = self.free(name)
        self.initializers[name] = value
        return name

    def free(self, name: str) -> str:
        """Returns `name`, with underscores behind it where it is taken."""
        while name in self.taken or name in self.initializers:
            name += "_"
        self.taken.add(name)
        return name

    def pair(self, node: FakeQuant, source: str, output: str) -> list[onnx.NodeProto]:
        """Returns QuantizeLinear and DequantizeLinear from one tensor to another."""
        middle, scale, zero = (self.free(f"{output}.{part}") for part in ("quantised", "scale", "zero"))
        self.initializers[scale] = np.array(node.scale, dtype=np.float32)
        self.initializers[zero] = np.array(node.zero_point, dtype=np.uint8 if node.lowest == 0 else np.int8)
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [middle], name=middle),
            helper.make_node("DequantizeLinear", [middle, scale, zero], [output], name=output),
        ]

    def param(self, name: str, transposed: bool = False) -> str:
        """Adds a parameter as an initializer; one that is named like input or output, or that several nodes read, gets a suffix."""
        written = f"{name}_param" if name in (INPUT, OUTPUT) else name
        if transposed and sum(node.params.count(name) for node in self.graph.nodes) > 1:
            written = f"{written}.transposed"
        integers = self.graph.integers.get(name)
        if any(written in made.output for made in self.before):
            return written
        if integers is not None:
            parts = [self.free(f"{written}.{part}") for part in ("integers", "scale", "zero")]
            values = (integers.values, integers.scale, np.zeros(integers.scale.shape, dtype=integers.values.dtype))
            self.initializers |= dict(zip(parts, values, strict=True))
            self.before.append(helper.make_node("DequantizeLinear", parts, [written], name=written, axis=0))
            return written
        value = np.asarray(self.graph.params[name], dtype=np.float32, order="C")
        value = np.ascontiguousarray(value.T) if transposed else value
        if self.bfloat16:
            stored, part = to_bfloat16(value), self.free(f"{written}.bfloat16")
            if stored.widened().tobytes() != value.tobytes():
                raise InputError(f'the parameter "{name}" is no bfloat16 number; round the network to bfloat16 first')
            self.narrow.append(stored.tensor(part))
            self.before.append(helper.make_node("Cast", [part], [written], name=written, to=TensorProto.FLOAT))
            return written
        with np.errstate(over="ignore"):
            narrow = value.astype(np.float16) if self.graph.storage == "fp16" else value
        if not np.array_equal(narrow, value):
            raise InputError(f'the parameter "{name}" is no float16 number; round the network to float16 first')
        if not self.computes_in_float:
            self.initializers[written] = narrow
        elif transposed:  # TensorRT knows a product in float16 by two casts that it reads
            part = self.store(f"{written}.half", narrow)
            self.before.append(helper.make_node("Cast", [part], [written], name=written, to=TensorProto.FLOAT))
        else:
            if name not in self.wide_params:
                self.wide_params[name] = self.store(f"{written}.wide", value)
            return self.wide_params[name]
        return written

    def node(self, node: Node) -> onnx.NodeProto:
        """Returns the ONNX node of a graph node."""
        kind, operands, attributes = onnx_form(node, self)
        inputs = [self.names[name] for name in node.inputs]
        return helper.make_node(kind, [*inputs, *operands], [self.names[node.name]], name=node.name, **attributes)
