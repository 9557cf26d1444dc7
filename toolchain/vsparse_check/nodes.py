"""Which ONNX operators and attributes are read, and the reading of those that move elements or apply a function to each."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, prod
from typing import Any

import numpy as np
import onnx

from vsparse_check.op import Op, Shape
from vsparse_check.refusal import need

# Attributes that each operator may have; those with a value must have exactly it.
WINDOW: dict[str, Any] = {"kernel_shape": None, "strides": None, "auto_pad": b"NOTSET", "pads": None, "dilations": None}
ALLOWED: dict[str, dict[str, Any]] = {
    "Conv": WINDOW | {"group": None},
    "Gemm": {"transB": None, "transA": 0, "alpha": 1.0, "beta": 1.0},
    "MaxPool": WINDOW | {"dilations": [1, 1], "ceil_mode": 0, "storage_order": 0},
    "AveragePool": WINDOW | {"pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0, "count_include_pad": 0},
    "Cast": {"to": None, "saturate": 1},
    "Flatten": {"axis": 1},
    "Reshape": {"allowzero": 0},
    "LeakyRelu": {"alpha": None},
    "Transpose": {"perm": None},
    "Concat": {"axis": None},
    "Pad": {"mode": b"constant"},
    **{kind: {"axis": None} for kind in ("QuantizeLinear", "DequantizeLinear")},
    **{
        kind: {}
        for kind in ("GlobalAveragePool", "Relu", "Identity", "Add", "Sub", "Mul", "Div", "Neg", "Clip", "Sigmoid", "Tanh", "Slice")
    },
}
INPUTS = {"Conv": 3, "Gemm": 3, "QuantizeLinear": 3, "DequantizeLinear": 3, "Clip": 3, "Pad": 3, "Slice": 5, "Concat": 1000}  # else 1 or:
INPUTS |= dict.fromkeys(("Reshape", "Add", "Sub", "Mul", "Div"), 2)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Returns the attributes of a node; Refused names an operator or attribute that is not read."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    kind = node.op_type
    sane = len(attributes) == len(node.attribute) and node.domain in ("", "ai.onnx") and len(node.output) == 1
    need(kind in ALLOWED and sane and 1 <= len(node.input) <= INPUTS.get(kind, 1), f'operator "{kind:.60}" is not one that is checked')
    for name, value in attributes.items():
        known = ALLOWED[kind].get(name, "") in (None, value)
        need(known, f"{kind} has {name:.60} = {value!s:.60}, which is not checked")
    return attributes


def leaky_slope(attributes: dict[str, Any]) -> tuple[float]:
    """Returns the slope of LeakyRelu below zero, from 0 to 1."""
    slope = float(attributes.get("alpha", np.float32(0.01)))
    need(0 <= slope <= 1, f"LeakyRelu has the slope {slope}, which is not from 0 to 1")
    return (slope,)


def clip_ends(end: Callable[[str], float], lowest: str, highest: str) -> tuple[float, float]:
    """Returns the two ends of Clip, −inf or inf where there is none."""
    low, high = end(lowest) if lowest else -inf, end(highest) if highest else inf
    need(low <= high and low < inf and high > -inf, f"Clip has the ends {low} and {high}")
    return low, high


def concat(output: str, names: tuple[str, ...], shapes: list[Shape], attributes: dict[str, Any]) -> Op:
    """Returns the operator that puts activations one after the other along a dimension other than the batch."""
    axis = int(attributes.get("axis", 0)) - 1
    rank = len(shapes[0])
    fits = 0 <= axis < rank and all(
        len(one) == rank and one[:axis] + one[axis + 1 :] == shapes[0][:axis] + shapes[0][axis + 1 :] for one in shapes
    )
    need(fits, f"Concat of the shapes {shapes!s:.100} along axis {axis + 1}")
    shape = (*shapes[0][:axis], sum(one[axis] for one in shapes), *shapes[0][axis + 1 :])
    index, start, places = np.arange(prod(shape)).reshape(shape), 0, []
    for one in shapes:
        there = index[(*[slice(None)] * axis, slice(start, start + one[axis]))].reshape(-1)
        places.append((there, np.arange(prod(one))))
        start += one[axis]
    return Op("move", output, names, shape, "concat", bias=np.zeros(prod(shape)), ends=(0.0,), places=tuple(places))


def transposed(output: str, name: str, source: Shape, attributes: dict[str, Any]) -> Op:
    """Returns a transposition that leaves the batch first."""
    order = [int(place) for place in attributes.get("perm", ())]
    need(sorted(order) == list(range(len(source) + 1)) and order[0] == 0, f"Transpose by {order!s:.60} moves the batch, or is none")
    index = np.arange(prod(source)).reshape(source).transpose([place - 1 for place in order[1:]])
    return _single(output, name, index)


def sliced(output: str, name: str, source: Shape, numbers: list[list[int]]) -> Op:
    """Returns the part of an activation at starts, ends, axes and steps, which leave the batch alone."""
    starts, ends, axes, steps = (numbers + [[]] * 4)[:4]
    need(len(numbers) >= 2, "Slice has no constant starts and ends")
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    right = len(starts) == len(ends) == len(axes) == len(steps) and len(set(axes)) == len(axes)
    need(right and all(1 <= axis <= len(source) for axis in axes) and min(steps, default=1) >= 1, "Slice is along the batch, or backward")
    places = [slice(None)] * len(source)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis - 1] = slice(start, end, step)  # negative places and those beyond the end mean the same in ONNX and here
    index = np.arange(prod(source)).reshape(source)[tuple(places)]
    need(index.size, "Slice leaves nothing")
    return _single(output, name, index)


def padded(output: str, name: str, source: Shape, pads: list[int], value: float) -> Op:
    """Returns an activation with a constant around it, not along the batch."""
    rank = len(source) + 1
    right = len(pads) == 2 * rank and pads[0] == pads[rank] == 0 and 0 <= min(pads) <= max(pads) <= 2**16 and isfinite(value)
    need(right, f"Pad by {pads!s:.60} with {value} is along the batch, negative or not finite")
    before, after = pads[1:rank], pads[rank + 1 :]
    shape = tuple(b + size + a for b, size, a in zip(before, source, after, strict=True))
    need(prod(shape) <= 2**24, f"an activation has the impossible shape {shape!s:.60}")
    bias = np.full(shape, value)
    inside = tuple(slice(b, b + size) for b, size in zip(before, source, strict=True))
    bias[inside] = 0
    there = np.arange(prod(shape)).reshape(shape)[inside].reshape(-1)
    return Op("move", output, (name,), shape, "move", bias=bias.reshape(-1), ends=(value,), places=((there, np.arange(prod(source))),))


def _single(output: str, name: str, index: np.ndarray) -> Op:
    """Returns the operator whose output has the elements `index` of its input, in the shape of `index`."""
    places = (np.arange(index.size), index.reshape(-1))
    return Op("move", output, (name,), index.shape, "move", bias=np.zeros(index.size), ends=(0.0,), places=(places,))
