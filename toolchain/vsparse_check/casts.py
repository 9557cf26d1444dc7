"""The types of tensors in files that convert to float16, and which sums they type as float32.

docs/numerics.md, sections 8 and 8.3.
"""

from __future__ import annotations

from collections import Counter

import onnx

from vsparse_check.refusal import need

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
# What adds up many numbers; and what may be in float32 between casts: that, and what rounds nothing
# and keeps order.
ADDS_UP = ("Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool")
IN_FLOAT32 = (*ADDS_UP, "Relu", "MaxPool", "Flatten", "Reshape", "Transpose", "Identity")


def has_wide_sums(model: onnx.ModelProto) -> bool:
    """Returns whether a file of float16 numbers types all its sums as float32.

    Refuted for one that mixes the two types: float32 values are the input, which is converted
    first, what was float16 before, and what sums make of that. The latter are read once, so that
    all who read them, rounded to float16, see one number.
    """
    graph = model.graph
    casts = {node.output[0]: target(node) for node in graph.node if node.op_type == "Cast"}
    if HALF not in casts.values():
        return False
    source = graph.input[0].name
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    computed, rounded = {source: FLOAT}, set[str]()
    summed = set[int]()
    for node in graph.node:
        read = [name for name in node.input if name in computed]
        if not read:
            types[node.output[0]] = casts.get(node.output[0], 0)
            continue
        if node.op_type == "Cast":
            if HALF in (computed[read[0]], casts[node.output[0]]) or read[0] in rounded:
                rounded.add(node.output[0])
            computed[node.output[0]] = casts[node.output[0]]
            continue
        need(
            node.op_type not in ("QuantizeLinear", "DequantizeLinear"),
            f'"{(node.name or node.output[0]):.60}" quantises float16 numbers',
        )
        kinds = {computed[name] for name in read}
        kinds |= {types[name] for name in node.input if types.get(name) in (FLOAT, HALF)}
        (kind, *others) = sorted(kinds)
        fits = kind == HALF or (node.op_type in IN_FLOAT32 and source not in read)
        need(
            not others and fits,
            f'"{(node.name or node.output[0]):.60}" ({node.op_type}) mixes float32 with float16',
        )
        computed[node.output[0]] = kind
        rounded |= {node.output[0]} if kind == HALF else set()
        summed |= {kind} if node.op_type in ADDS_UP else set()
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    for name, kind in computed.items():
        once = kind != FLOAT or name in rounded or name == source or readers[name] <= 1
        need(once, f'"{name:.60}" is in float32 among float16 numbers, and is read twice')
    return summed == {FLOAT}


def target(node: onnx.NodeProto) -> int:
    """Returns the type that a Cast converts to, 0 where it names none."""
    return next((int(item.i) for item in node.attribute if item.name == "to"), 0)
