"""What a runtime may make of the formats of half-precision files (docs/numerics.md, section 8)."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from vsparse.errors import GateError
from vsparse.stages.export.runtime_reader import needed


def require_one_value(model: onnx.ModelProto, what: str) -> None:
    """Raises GateError where an activation is converted to float16 for one reader and read unrounded by another.

    Bounds take an activation for one number, whoever reads it.
    """
    readers: dict[str, list[bool]] = {value.name: [False] for value in model.graph.output}
    for node in needed(model.graph):
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type == "Cast" and to == TensorProto.FLOAT16)
    for name, rounds in readers.items():
        if any(rounds) and not all(rounds):
            raise GateError(
                f'{what} reads "{name}" both rounded to float16 and unrounded, two values where bounds know one; leave fp16 out'
            )
