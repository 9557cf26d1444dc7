"""Readers that are broken on purpose, one way each: an attack that does not notice them is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from vsparse.graph import onnx_ops
from vsparse.graph.ir import BatchNorm, Clip, LeakyRelu, MaxPool, Node
from vsparse.graph.ir import Pad as PadNode
from vsparse.graph.onnx_compute_ops import ComputeOps
from vsparse.graph.onnx_move_ops import MoveOps
from vsparse.graph.onnx_ops import OPERATORS, Reader
from vsparse.graph.onnx_quant_ops import QuantOps
from vsparse.graph.onnx_shape_ops import ShapeOps
from vsparse.graph.onnx_values import Activation, Values

Patch = Callable[[Any, str, Any], None]


def _method(patch: Patch, operator: str, method: Callable[..., Any]) -> None:
    patch(onnx_ops, "OPERATORS", {**OPERATORS, operator: replace(OPERATORS[operator], method=method)})


def _squeeze_keeps_batch(patch: Patch) -> None:
    true = ShapeOps.squeeze

    def squeeze(self: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if isinstance(values[0], Activation) and len(values) < 2 and "axes" not in a:
            a = {"axes": [i for i, size in enumerate(self.whole(values[0])) if size == 1 and i] or [0]}
        return true(self, values, names, a)

    _method(patch, "Squeeze", squeeze)


def _squeeze_of_constants(patch: Patch) -> None:
    true = ShapeOps.squeeze

    def squeeze(self: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        return values[0].squeeze() if isinstance(values[0], np.ndarray) else true(self, values, names, a)

    _method(patch, "Squeeze", squeeze)


def _changed_node(kind: type[Node], change: Callable[[Any], Node]) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        true = Values.add

        def add(self: Any, node: Node, batched: bool = True) -> Activation:
            return true(self, change(node) if isinstance(node, kind) else node, batched)

        patch(Values, "add", add)

    return mutate


def _without(operator: str, attribute: str) -> Callable[[Patch], None]:
    """Returns a mutation that ignores an attribute."""

    def mutate(patch: Patch) -> None:
        true = OPERATORS[operator].method

        def method(self: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
            return true(self, values, names, {name: value for name, value in a.items() if name != attribute})

        _method(patch, operator, method)

    return mutate


def _same_upper_is_lower(patch: Patch) -> None:
    true = ComputeOps._pads

    def pads(self: Any, a: dict[str, Any], *rest: Any, **more: Any) -> Any:
        other = {"SAME_LOWER": "SAME_UPPER"}.get(a.get("auto_pad", ""), a.get("auto_pad", "NOTSET"))
        return true(self, a | {"auto_pad": other}, *rest, **more)

    patch(ComputeOps, "_pads", pads)


def _higher_rank(patch: Patch) -> None:
    true = ComputeOps._constant

    def constant(self: Any, kind: Any, x: Activation, c: Any, name: str) -> Activation:
        while c.ndim > len(self.whole(x)) and c.shape[0] == 1:
            c = c[0]
        return true(self, kind, x, c, name)

    patch(ComputeOps, "_constant", constant)


def _flatten_all(patch: Patch) -> None:
    def flatten(self: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        return self.to_shape(self.activation(values[0]), (prod(self.shape(values[0])),))

    _method(patch, "Flatten", flatten)


def _concat_ignores_sign(patch: Patch) -> None:
    true = MoveOps.concat

    def concat(self: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if isinstance(values[0], Activation) and a["axis"] < -1:
            a = {"axis": a["axis"] + 1}
        return true(self, values, names, a)

    _method(patch, "Concat", concat)


def _uneven_split_front(patch: Patch) -> None:
    true = MoveOps.split

    def split(self: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        return list(true(self, values, names, a))[::-1]

    _method(patch, "Split", split)


def _int8_is_uint8(patch: Patch) -> None:
    true = QuantOps.quantise

    def quantise(self: Any, *rest: Any) -> Any:
        found = true(self, *rest)
        return replace(found, lowest=0, highest=255) if found.lowest < 0 <= found.zero_point else found

    patch(QuantOps, "quantise", quantise)
    _method(patch, "QuantizeLinear", quantise)


def _weights_axis(patch: Patch) -> None:
    true = Reader.gemm

    def gemm(self: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        weight = values[1]
        square = isinstance(weight, np.ndarray) and weight.ndim == 2 and weight.shape[0] == weight.shape[1]
        return true(self, values, names, {name: value for name, value in a.items() if name != "transB"} if square else a)

    _method(patch, "Gemm", gemm)


MUTATIONS: dict[str, Callable[[Patch], None]] = {
    "Squeeze without axes keeps the batch": _squeeze_keeps_batch,
    "Squeeze of a constant ignores its axes": _squeeze_of_constants,
    "SAME_LOWER is read as SAME_UPPER": _same_upper_is_lower,
    "a constant of more dimensions is cut to fewer": _higher_rank,
    "Flatten ignores its axis": _flatten_all,
    "a negative axis of Concat is off by one": _concat_ignores_sign,
    "the parts of Split in reverse order": _uneven_split_front,
    "keepdims of ReduceSum is ignored": _without("ReduceSum", "keepdims"),
    "epsilon of BatchNormalization is ignored": _without("BatchNormalization", "epsilon"),
    "transB of square weights is ignored": _weights_axis,
    "perm of Transpose is ignored": _without("Transpose", "perm"),
    "value of Pad is ignored": _without("Pad", "value"),
    "the first of Clip's ends is ignored": _changed_node(
        Clip, lambda node: replace(node, lowest=-np.inf) if node.highest < np.inf else node
    ),
    "LeakyRelu's slope is taken for 0.01": _changed_node(LeakyRelu, lambda node: replace(node, slope=0.01)),
    "batch normalisation's epsilon is doubled": _changed_node(BatchNorm, lambda node: replace(node, epsilon=2 * node.epsilon)),
    "paddings of max pools are transposed": _changed_node(MaxPool, lambda n: replace(n, pads=(n.pads[0], n.pads[3], n.pads[2], n.pads[1]))),
    "Pad before and after are exchanged": _changed_node(PadNode, lambda node: replace(node, before=node.after, after=node.before)),
    "int8 activations are clamped as uint8": _int8_is_uint8,
}
