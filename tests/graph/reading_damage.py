"""Random files, damaged in one place that still parses: another axis, size, input, operator or opset than was written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from reading_graphs import File
from reading_moves import random_file

ALIKE = (
    ("Add", "Sub", "Mul", "Div", "MatMul", "PRelu"),
    ("MaxPool", "AveragePool"),
    ("ReduceMean", "ReduceSum"),
    ("Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose", "Relu", "GlobalAveragePool"),
)


def damaged(file: File, rng: np.random.Generator) -> File:
    """Returns a file with one or two things changed."""
    model = onnx.ModelProto.FromString(file.data)
    result = file
    for _ in range(int(rng.integers(1, 3))):
        node = model.graph.node[int(rng.integers(len(model.graph.node)))]
        kind = int(rng.integers(0, 7))
        if kind <= 1 and node.attribute:
            _attribute(node, int(rng.integers(len(node.attribute))), rng)
        elif kind == 2 and len(node.input) > 1:
            i, j = (int(k) for k in rng.choice(len(node.input), 2, replace=False))
            node.input[i], node.input[j] = node.input[j], node.input[i]
        elif kind == 3 and node.input:
            names = [name for one in model.graph.node for name in (*one.input, *one.output)]
            node.input[int(rng.integers(len(node.input)))] = str(rng.choice(names))
        elif kind == 4:
            alike = [one for one in ALIKE if node.op_type in one]
            if alike:
                node.op_type = str(rng.choice(alike[0]))
        elif kind == 5:
            opset = int(rng.integers(7, 27))
            for entry in model.opset_import:
                entry.version = opset if entry.domain in ("", "ai.onnx") else entry.version
            result = replace(result, opset=opset)
        else:
            _sizes(model, rng)
    return replace(result, data=model.SerializeToString())


def _attribute(node: onnx.NodeProto, i: int, rng: np.random.Generator) -> None:
    attribute = node.attribute[i]
    if rng.random() < 0.3:
        del node.attribute[i]
    elif attribute.type == AttributeProto.INT:
        attribute.i = int(rng.choice([attribute.i + 1, attribute.i - 1, -attribute.i, 0, 1, -1, 2]))
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        k = int(rng.integers(len(attribute.ints)))
        value = attribute.ints[k]
        attribute.ints[k] = int(rng.choice([value + 1, value - 1, -value, 0, 1, -1, 2, 2**31]))
        if rng.random() < 0.1:
            attribute.ints.pop()
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = float(rng.choice([0.0, 1.0, 0.5, -0.5, attribute.f * 2]))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "constant", "edge"])).encode()


def _sizes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Changes a number in a stored list of integers, or its shape."""
    lists = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64 and tensor.dims]
    if not lists:
        return
    tensor = lists[int(rng.integers(len(lists)))]
    value = numpy_helper.to_array(tensor).copy()
    if value.size and rng.random() < 0.8:
        k = int(rng.integers(value.size))
        one = max(int(value.flat[k]), -(2**62)) >> (0 if abs(int(value.flat[k])) < 2**62 else 1)
        value.flat[k] = int(rng.choice([one + 1, one - 1, -one, 0, 1, -1, 2, 2**31 - 1]))
    else:
        value = value[:-1] if rng.random() < 0.5 else value.reshape(1, -1) if rng.random() < 0.5 else np.concatenate([value, value[:1]])
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def file_of(seed: int, i: int) -> File:
    """Returns file i of a seed: as it was written, or every fourth one damaged."""
    file = random_file([seed, i])
    return damaged(file, np.random.default_rng([seed, i, 2])) if i % 4 == 3 else file
