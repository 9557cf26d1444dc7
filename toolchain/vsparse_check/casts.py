"""The types of tensors in files that convert to float16, and which sums they type as float32.

docs/numerics.md, sections 8 and 8.3.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import onnx

from vsparse_check.refusal import need

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
# What adds up many numbers; and what may be in float32 between casts: that, and what rounds nothing
# and keeps order.
ADDS_UP = ("Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool")
MOVES = ("Flatten", "Reshape", "Transpose", "Identity")
IN_FLOAT32 = (*ADDS_UP, *MOVES, "Relu", "MaxPool")


class TypedSums(NamedTuple):
    """What a file of float16 numbers types as float32: its sums, its input, its output."""

    half: bool = False  # whether it converts to float16 at all
    wide: bool = False
    input: bool = False
    output: bool = False


def typed_sums(model: onnx.ModelProto) -> TypedSums:
    """Returns what a file of float16 numbers types as float32.

    Refuted for one that mixes the two types: float32 values are the input, what was float16 before,
    and what sums make of these. The latter are read once, so that all who read them, rounded to
    float16, see one number; the input is rounded for all who read it or for none.
    """
    graph = model.graph
    casts = {node.output[0]: target(node) for node in graph.node if node.op_type == "Cast"}
    if HALF not in casts.values():
        return TypedSums()
    source = graph.input[0].name
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    computed, rounded, raw = {source: FLOAT}, set[str](), {source}
    summed, of_input = set[int](), set[str]()
    for node in graph.node:
        read, output = [name for name in node.input if name in computed], node.output[0]
        if not read:
            types[output] = casts.get(output, 0)
            continue
        kinds = {computed[name] for name in read}
        kinds |= {types[name] for name in node.input if types.get(name) in (FLOAT, HALF)}
        if node.op_type == "Cast":
            kinds = {casts[output]}
            if HALF in (computed[read[0]], casts[output]) or read[0] in rounded:
                rounded.add(output)
            if read[0] in raw and casts[output] == HALF:
                of_input.add("rounded")
        need(node.op_type != "QuantizeLinear", f'"{output:.60}" quantises float16 numbers')
        (kind, *others) = sorted(kinds)
        unmoved = raw.intersection(read)
        allowed = (*ADDS_UP, *MOVES) if unmoved else IN_FLOAT32
        need(
            not others and (node.op_type == "Cast" or kind == HALF or node.op_type in allowed),
            f'"{(node.name or output):.60}" ({node.op_type}) mixes float32 with float16',
        )
        computed[output] = kind
        if kind == HALF or (node.op_type in MOVES and rounded.intersection(read)):
            rounded.add(output)
        if unmoved and kind == FLOAT and node.op_type in (*MOVES, "Cast"):
            raw.add(output)
        if node.op_type in ADDS_UP:
            summed.add(kind)
            of_input |= {"summed"} if unmoved else set()
    need(len(of_input) < 2, "the input is read both as it is and rounded to float16")
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    for name, kind in computed.items():
        once = kind != FLOAT or name in rounded | raw or readers[name] <= 1
        need(once, f'"{name:.60}" is in float32 among float16 numbers, and is read twice')
    wide, result = summed == {FLOAT}, graph.output[0].name
    return TypedSums(True, wide, wide and of_input == {"summed"}, wide and result not in rounded)


def target(node: onnx.NodeProto) -> int:
    """Returns the type that a Cast converts to, 0 where it names none."""
    return next((int(item.i) for item in node.attribute if item.name == "to"), 0)
