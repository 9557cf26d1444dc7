"""A network as a LiteRT (TensorFlow Lite) file, by the schema that the package brings, and its interpreter on one thread.

The converters that LiteRT offers start from PyTorch or TensorFlow models; the file is written here node by node instead, so that it has the
weights of the ONNX file. Maps are [1, height, width, channels]; padding is SAME where that is the network's, and an operator of its own
otherwise. For chains of convolutions, fully connected layers and ReLUs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from vsparse.graph import Conv, Gemm, Graph, Relu, Reshape

VERSION = 3
RELU = 1


class _File:
    """The tensors, buffers and operators of a file as they are added."""

    def __init__(self) -> None:
        self.buffers: list[Any] = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[int] = []

    def tensor(self, shape: tuple[int, ...], value: NDArray[Any] | None = None) -> int:
        """Adds a tensor, float32 or the type of a constant's value, and returns its index."""
        made = schema.TensorT()
        made.shape, made.name = np.array(shape, np.int32), f"t{len(self.tensors)}"
        made.type = schema.TensorType.INT32 if value is not None and value.dtype == np.int32 else schema.TensorType.FLOAT32
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
            made.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(made)
        return len(self.tensors) - 1

    def operator(self, name: str, inputs: list[int], output: int, options: Any, kind: str) -> None:
        """Adds an operator of the schema's name, with options of the schema's type `kind`."""
        code = getattr(schema.BuiltinOperator, name)
        if code not in self.codes:
            self.codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = self.codes.index(code)
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        made.builtinOptions, made.builtinOptionsType = options, getattr(schema.BuiltinOptions, kind)
        self.operators.append(made)

    def finish(self, source: int, output: int) -> bytes:
        """Returns the file."""
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = np.array([source], np.int32), np.array([output], np.int32)
        model.version, model.subgraphs, model.buffers, model.operatorCodes = VERSION, [graph], self.buffers, []
        for code in self.codes:
            made = schema.OperatorCodeT()
            made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), 1
            model.operatorCodes.append(made)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def file_of(graph: Graph) -> bytes:
    """Returns the network's LiteRT file."""
    file = _File()
    source = last = file.tensor((1, *_last(graph.input_shape)))
    follows = graph.consumers()
    order: tuple[int, ...] | None = None  # of the map that a flattened activation was: channels come last in it
    for node in graph.nodes:
        if isinstance(node, Relu):
            continue
        if isinstance(node, Reshape):
            order = graph.shape_of(node.inputs[0])
            last = _reshape(file, last, prod(order))
            continue
        assert isinstance(node, Conv | Gemm)
        weight = graph.params[node.weight]
        bias = np.zeros(len(weight), np.float32) if node.bias is None else graph.params[node.bias]
        relu = RELU if any(isinstance(one, Relu) for one in follows[node.name]) else 0
        if isinstance(node, Gemm):
            if order is not None and len(order) == 3:
                weight = weight.reshape(len(weight), *order).transpose(0, 2, 3, 1).reshape(len(weight), -1)
            order = None
            output, options = file.tensor((1, len(weight))), schema.FullyConnectedOptionsT()
            options.fusedActivationFunction = relu
            inputs = [last, file.tensor(weight.shape, weight), file.tensor(bias.shape, bias)]
            file.operator("FULLY_CONNECTED", inputs, output, options, "FullyConnectedOptions")
        else:
            assert node.groups == 1
            assert node.dilation == (1, 1)
            size = graph.shape_of(node.inputs[0])
            same = _same(size, node, weight.shape)
            if not same and any(node.pads):
                last = _pad(file, last, size, node.pads)
            stored = weight.transpose(0, 2, 3, 1)
            output, options = file.tensor((1, *_last(node.shape))), schema.Conv2DOptionsT()
            options.padding = schema.Padding.SAME if same else schema.Padding.VALID
            options.strideH, options.strideW = node.stride
            options.dilationHFactor = options.dilationWFactor = 1
            options.fusedActivationFunction = relu
            inputs = [last, file.tensor(stored.shape, stored), file.tensor(bias.shape, bias)]
            file.operator("CONV_2D", inputs, output, options, "Conv2DOptions")
        last = output
    return file.finish(source, last)


def call_of(graph: Graph, x: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """Returns a call that gives the logits of one input [1, *shape]."""
    interpreter = Interpreter(model_content=file_of(graph), num_threads=1)
    interpreter.allocate_tensors()
    source, output = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    given = np.ascontiguousarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)

    def call() -> NDArray[np.float32]:
        interpreter.set_tensor(source, given)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(output))

    return call


def _last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0])


def _same(size: tuple[int, ...], node: Conv, weight: tuple[int, ...]) -> bool:
    """Whether the padding is what TensorFlow calls SAME: the output is the input over the stride, the smaller half comes first."""
    wanted = []
    for axis in range(2):
        out = -(-size[1 + axis] // node.stride[axis])
        total = max((out - 1) * node.stride[axis] + weight[2 + axis] - size[1 + axis], 0)
        wanted.append((out, total // 2, total - total // 2))
    return wanted == [(node.shape[1 + axis], node.pads[axis], node.pads[2 + axis]) for axis in range(2)]


def _pad(file: _File, last: int, size: tuple[int, ...], pads: tuple[int, ...]) -> int:
    top, left, bottom, right = pads
    output = file.tensor((1, size[1] + top + bottom, size[2] + left + right, size[0]))
    widths = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    file.operator("PAD", [last, file.tensor((4, 2), widths)], output, schema.PadOptionsT(), "PadOptions")
    return output


def _reshape(file: _File, last: int, size: int) -> int:
    options, output = schema.ReshapeOptionsT(), file.tensor((1, size))
    options.newShape = np.array([1, size], np.int32)
    file.operator("RESHAPE", [last, file.tensor((2,), options.newShape)], output, options, "ReshapeOptions")
    return output
