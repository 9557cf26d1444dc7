"""Operators of the runtime's graphs that move elements, and the programs that compute shapes, executed as ONNX defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from vsparse.graph.shapes import show
from vsparse.stages.export.runtime_context import Attributes, RuntimeContext, Unknown, runs
from vsparse.stages.export.runtime_hashes import Fingerprint, joined
from vsparse.stages.export.runtime_reference import padded
from vsparse.stages.export.runtime_windows import HashArray


def _moved(x: Any, move: Any) -> Any:
    return x.moved(move) if isinstance(x, Fingerprint) else move(x)


@runs("Identity")
def runtime_identity(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    return inputs[0]


@runs("Dropout")
def runtime_dropout(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    if len(inputs) > 2 and inputs[2] is not None and (not isinstance(inputs[2], np.ndarray) or inputs[2].any()):
        raise Unknown("is in training mode")
    return inputs[0]


@runs("Constant")
def runtime_constant(r: RuntimeContext, inputs: list[Any], a: Attributes) -> NDArray[Any]:
    if "value" in a:
        return np.asarray(numpy_helper.to_array(a["value"]))
    name, value = next(iter(a.items()))
    return np.array(value, dtype=np.float32 if name.startswith("value_float") else np.int64)


@runs("Shape")
def runtime_shape_of(r: RuntimeContext, inputs: list[Any], a: Attributes) -> NDArray[Any]:
    shape = inputs[0].shape
    return np.array(shape[a.get("start", 0) : a.get("end", len(shape))], dtype=np.int64)


@runs("Gather")
def runtime_gather(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    indices, axis = inputs[1], a.get("axis", 0)
    if not isinstance(indices, np.ndarray):
        raise Unknown("picks elements that depend on the input")
    return _moved(inputs[0], lambda array: np.take(array, indices.astype(np.int64), axis=axis))


@runs("Concat")
def runtime_concat(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    arrays = all(isinstance(one, np.ndarray) for one in inputs)
    if arrays:
        return np.concatenate(inputs, axis=a["axis"])
    if not all(isinstance(one, Fingerprint) for one in inputs):
        raise Unknown("joins an activation with a constant")
    if a["axis"] % len(inputs[0].shape) == 0 and not r.reference.one_sample:
        raise Unknown("joins samples")
    return joined(inputs, lambda parts: np.concatenate(parts, axis=a["axis"]))


@runs("Reshape")
def runtime_reshape(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    target, shape = r.integers(inputs[1]), inputs[0].shape
    if not a.get("allowzero", 0):
        target = [shape[i] if size == 0 else size for i, size in enumerate(target)]
    return _moved(inputs[0], lambda array: array.reshape(target))


@runs("Flatten")
def runtime_flatten(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    shape, axis = inputs[0].shape, a.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    return _moved(inputs[0], lambda array: array.reshape(rows, -1))


@runs("Squeeze")
def runtime_squeeze(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    axes = a.get("axes") if len(inputs) < 2 or inputs[1] is None else r.integers(inputs[1])
    return _moved(inputs[0], lambda array: array.squeeze() if axes is None else array.squeeze(tuple(axes)))


@runs("Unsqueeze")
def runtime_unsqueeze(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    axes = tuple(a["axes"] if len(inputs) < 2 else r.integers(inputs[1]))
    return _moved(inputs[0], lambda array: np.expand_dims(array, axes))


@runs("Transpose")
def runtime_transpose(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    return _moved(inputs[0], lambda array: array.transpose(a.get("perm")))


@runs("Slice")
def runtime_slice(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    parts = [a.get(name) for name in ("starts", "ends", "axes", "steps")]
    for i, one in enumerate(inputs[1:]):
        parts[i] = parts[i] if one is None else r.integers(one)
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        raise Unknown("does not say where it starts and ends")
    shape = inputs[0].shape
    ranges = [slice(None)] * len(shape)
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = 1 if steps is None else steps[i]
        if step < 1:
            raise Unknown("has a step below 1")
        ranges[axis % len(shape)] = slice(*slice(starts[i], ends[i], step).indices(shape[axis]))
    return _moved(inputs[0], lambda array: array[tuple(ranges)])


def runtime_split(r: RuntimeContext, inputs: list[Any], a: Attributes, outputs: int) -> list[Any]:
    axis = a.get("axis", 0)
    size = inputs[0].shape[axis]
    sizes = a.get("split") if len(inputs) < 2 or inputs[1] is None else r.integers(inputs[1])
    each = -(-size // outputs)
    sizes = [min(each, size - i * each) for i in range(outputs)] if sizes is None else sizes
    if len(sizes) != outputs or sum(sizes) != size:
        raise Unknown("has parts that do not add up")
    ends = np.cumsum(sizes)
    return [
        _moved(inputs[0], lambda array, first=end - part, end=end: np.take(array, range(first, end), axis=axis))
        for part, end in zip(sizes, ends, strict=True)
    ]


@runs("Pad")
def runtime_pad(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x = r.value(inputs[0])
    if a.get("mode", b"constant") != b"constant":
        raise Unknown("pads with something else than a constant")
    pads = list(a.get("pads", [])) if len(inputs) < 2 else r.integers(inputs[1])
    number = a.get("value", 0.0)
    if len(inputs) > 2 and inputs[2] is not None:
        if (constant := r.numbers(inputs[2])).size != 1:
            raise Unknown("pads with several numbers")
        number = float(constant.reshape(()))
    axes = range(len(x.shape)) if len(inputs) < 4 or inputs[3] is None else r.integers(inputs[3])
    around = [(0, 0)] * len(x.shape)
    for i, axis in enumerate(axes):
        around[axis % len(x.shape)] = (pads[i], pads[i + len(pads) // 2])
    if min(min(pair) for pair in around) < 0 or any(around[0]):
        raise Unknown("pads the batch, or cuts off")
    return padded(r.algebra, x, around, number)


def moved_by_description(node: onnx.NodeProto, inputs: list[Any], opset: int) -> list[Any]:
    """Returns the outputs of an operator of which `graph/operators` says that it moves elements of its first input.

    It is executed by ONNX's own reference implementation, which shares no code with how files are read here.
    """
    if any(isinstance(one, Fingerprint) for one in inputs[1:]):
        raise Unknown("moves elements to indices that depend on the input")
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    constants = {name: one for name, one in zip(node.input[1:], inputs[1:], strict=True) if name}
    try:
        evaluator = ReferenceEvaluator(plain, opsets={"": opset})

        def output(i: int) -> Callable[[HashArray], HashArray]:
            return lambda array: np.asarray(evaluator.run(None, {node.input[0]: array, **constants})[i])

        return [_moved(inputs[0], output(i)) for i in range(len(node.output))]
    except Exception as error:  # the reference implementation raises what it likes
        raise Unknown(f"is not executed by ONNX's reference implementation ({type(error).__name__}: {show(error)})") from error
