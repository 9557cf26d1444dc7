"""Readers that are broken on purpose, one way each: an attack that does not notice them is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from vsparse.graph import onnx_reader
from vsparse.graph.bfloat16 import BFloat16
from vsparse.graph.ir import BatchNorm, Clip, LeakyRelu, MaxPool, Node
from vsparse.graph.ir import Pad as PadNode
from vsparse.graph.onnx_context import Activation, OnnxContext
from vsparse.graph.operators import OPERATORS, affine, arithmetic, pooling, quantised
from vsparse.graph.operators.reshape import to_shape

Patch = Callable[[Any, str, Any], None]
Change = Callable[[Callable[..., Any], Any, list[Any], list[str], dict[str, Any]], Any]


def _changed_reader(operator: str, change: Change) -> Callable[[Patch], None]:
    """Returns a mutation of how an operator is read; `change` is given the true reader before its arguments."""

    def mutate(patch: Patch) -> None:
        true = OPERATORS[operator].read
        changed = replace(OPERATORS[operator], read=lambda *arguments: change(true, *arguments))
        patch(onnx_reader, "OPERATORS", {**OPERATORS, operator: changed})

    return mutate


def _changed_node(kind: type[Node], change: Callable[[Any], Node]) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        true = OnnxContext.add

        def add(self: Any, node: Node, batched: bool = True) -> Activation:
            return true(self, change(node) if isinstance(node, kind) else node, batched)

        patch(OnnxContext, "add", add)

    return mutate


def _squeeze_keeps_batch(true: Any, c: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    if isinstance(values[0], Activation) and len(values) < 2 and "axes" not in a:
        a = {"axes": [i for i, size in enumerate(c.whole(values[0])) if size == 1 and i] or [0]}
    return true(c, values, names, a)


def _squeeze_of_constants(true: Any, c: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    return values[0].squeeze() if isinstance(values[0], np.ndarray) else true(c, values, names, a)


def _without(operator: str, attribute: str) -> Callable[[Patch], None]:
    """Returns a mutation that ignores an attribute."""

    def ignore(true: Any, c: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        return true(c, values, names, {name: value for name, value in a.items() if name != attribute})

    return _changed_reader(operator, ignore)


def _same_upper_is_lower(patch: Patch) -> None:
    true = affine.window_pads

    def pads(a: dict[str, Any], *rest: Any, **more: Any) -> Any:
        other = {"SAME_LOWER": "SAME_UPPER"}.get(a.get("auto_pad", ""), a.get("auto_pad", "NOTSET"))
        return true(a | {"auto_pad": other}, *rest, **more)

    for module in (affine, pooling):
        patch(module, "window_pads", pads)


def _higher_rank(patch: Patch) -> None:
    true = arithmetic.with_constant

    def with_constant(c: Any, kind: Any, x: Activation, value: Any, name: str) -> Activation:
        while value.ndim > len(c.whole(x)) and value.shape[0] == 1:
            value = value[0]
        return true(c, kind, x, value, name)

    patch(arithmetic, "with_constant", with_constant)


def _flatten_all(true: Any, c: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    return to_shape(c, c.activation(values[0]), (prod(c.shape(values[0])),))


def _concat_ignores_sign(true: Any, c: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    if isinstance(values[0], Activation) and a["axis"] < -1:
        a = {"axis": a["axis"] + 1}
    return true(c, values, names, a)


def _uneven_split_front(true: Any, c: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    return list(true(c, values, names, a))[::-1]


def _int8_is_uint8(patch: Patch) -> None:
    true = quantised.read_quantise

    def quantise(*arguments: Any) -> Any:
        found = true(*arguments)
        return replace(found, lowest=0, highest=255) if found.lowest < 0 <= found.zero_point else found

    patch(quantised, "read_quantise", quantise)
    patch(onnx_reader, "OPERATORS", {**OPERATORS, "QuantizeLinear": replace(OPERATORS["QuantizeLinear"], read=quantise)})


def _weights_axis(true: Any, c: Any, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    weight = values[1]
    square = isinstance(weight, np.ndarray) and weight.ndim == 2 and weight.shape[0] == weight.shape[1]
    return true(c, values, names, {name: value for name, value in a.items() if name != "transB"} if square else a)


def _bfloat16_is_float16(patch: Patch) -> None:
    """Takes the bits for another format's where they are finite numbers there."""

    def widened(self: BFloat16) -> Any:
        with np.errstate(invalid="ignore"):
            other = self.bits.view(np.float16).astype(np.float32)
        return np.where(np.isfinite(other), other, np.float32(0))

    patch(BFloat16, "widened", widened)


def _bfloat16_exponent(patch: Patch) -> None:
    """Takes the lowest bit of the exponent for the highest of the fraction."""
    true = BFloat16.widened
    patch(BFloat16, "widened", lambda self: true(BFloat16(self.bits & np.uint16(0xFF7F))))


MUTATIONS: dict[str, Callable[[Patch], None]] = {
    "Squeeze without axes keeps the batch": _changed_reader("Squeeze", _squeeze_keeps_batch),
    "Squeeze of a constant ignores its axes": _changed_reader("Squeeze", _squeeze_of_constants),
    "SAME_LOWER is read as SAME_UPPER": _same_upper_is_lower,
    "a constant of more dimensions is cut to fewer": _higher_rank,
    "Flatten ignores its axis": _changed_reader("Flatten", _flatten_all),
    "a negative axis of Concat is off by one": _changed_reader("Concat", _concat_ignores_sign),
    "the parts of Split in reverse order": _changed_reader("Split", _uneven_split_front),
    "keepdims of ReduceSum is ignored": _without("ReduceSum", "keepdims"),
    "epsilon of BatchNormalization is ignored": _without("BatchNormalization", "epsilon"),
    "transB of square weights is ignored": _changed_reader("Gemm", _weights_axis),
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
    "bfloat16 numbers are read as float16": _bfloat16_is_float16,
    "a bit of a bfloat16 exponent is lost": _bfloat16_exponent,
}
