"""ONNX nodes of the operators beside the core's: divisions and differences, curves, moves of data."""

from __future__ import annotations

from collections.abc import Callable
from math import isinf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.ir import Clip, Concat, DivConstant, LeakyRelu, Neg, Node, Pad, Sigmoid, Slice, Sub, Tanh, Transpose

# Turns an array into an initializer with a name of its own like the first argument, and returns that name.
Store = Callable[[str, NDArray[Any]], str]

_PLAIN: dict[type[Node], str] = {Sub: "Sub", Neg: "Neg", Sigmoid: "Sigmoid", Tanh: "Tanh", DivConstant: "Div"}


def onnx_call(node: Node, store: Store, float_type: type[np.floating[Any]]) -> tuple[str, list[str], dict[str, Any]]:
    """Returns (operator, names of the inputs after the activations, attributes) of a node; parameters are left to the caller.

    `float_type` is that of the file's tensors. InputError for a node type that is not known here.
    """
    if type(node) in _PLAIN:
        return _PLAIN[type(node)], [], {}
    if isinstance(node, LeakyRelu):
        return "LeakyRelu", [], {"alpha": node.slope}
    if isinstance(node, Clip):
        ends = {"min": node.lowest, "max": node.highest}
        names = ["" if isinf(end) else store(f"{node.name}.{name}", np.array(end, float_type)) for name, end in ends.items()]
        return "Clip", names if names[1] else names[:1], {}
    if isinstance(node, Transpose):
        return "Transpose", [], {"perm": [0, *(i + 1 for i in node.order)]}
    if isinstance(node, Concat):
        return "Concat", [], {"axis": node.axis + 1}
    if isinstance(node, Slice):
        axes = np.arange(1, len(node.starts) + 1)
        parts = {"starts": node.starts, "ends": node.stops, "axes": axes, "steps": node.steps}
        return "Slice", [store(f"{node.name}.{name}", np.array(part, np.int64)) for name, part in parts.items()], {}
    if isinstance(node, Pad):
        pads = store(f"{node.name}.pads", np.array([0, *node.before, 0, *node.after], np.int64))
        value = [store(f"{node.name}.value", np.array(node.value, float_type))] if node.value else []
        return "Pad", [pads, *value], {}
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, which cannot be exported')
