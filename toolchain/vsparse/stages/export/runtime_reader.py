"""Reads a graph that ONNX Runtime saved, operator by operator, into fingerprints; unknown operators are refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import numpy_helper

import vsparse.stages.export.runtime_blocks
import vsparse.stages.export.runtime_quantised  # noqa: F401  # both for the table, which they fill
from vsparse.graph.operators import OPERATORS
from vsparse.graph.shapes import show
from vsparse.stages.export.runtime_context import RUNTIME_OPERATORS, RuntimeContext, Unknown
from vsparse.stages.export.runtime_hashes import Fingerprint
from vsparse.stages.export.runtime_moves import moved_by_description, runtime_split
from vsparse.stages.export.runtime_operators import function_by_name
from vsparse.stages.export.runtime_reference import Reference


@dataclass
class RuntimeFingerprints:
    """What a runtime's graph computes: its output and all else, by name."""

    output: Any
    tensors: dict[str, Any]
    context: RuntimeContext
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def is_known(self, node: onnx.NodeProto) -> bool:
        """Returns whether the elements of a node's outputs are all elements of the file's network."""
        made = [self.tensors.get(name) for name in node.output]
        return all(self.context.is_known(one.hashes) for one in made if isinstance(one, Fingerprint))


def needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the nodes that the output is made of, each behind those that it reads; files need not have them in that order."""
    made = {name: node for node in graph.node for name in node.output if name}
    order: list[onnx.NodeProto] = []
    done: set[int] = set()
    todo = [(made[graph.output[0].name], False)] if graph.output[0].name in made else []
    while todo:
        node, ready = todo.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            order.append(node)
        else:
            todo.append((node, True))
            todo += [(made[name], False) for name in node.input if name in made and id(made[name]) not in done]
    return order


def read_runtime_graph(model: onnx.ModelProto, reference: Reference, block: int) -> RuntimeFingerprints:
    """Evaluates an optimised graph on the input of `reference`.

    Raises Unknown, with the node's name in front, for an operator or a use of one that is not known.
    """
    graph = model.graph
    tensors: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors |= {one.name: reference.input for one in graph.input if one.name not in tensors}
    context = RuntimeContext(reference, block)
    reference.algebra.allowed = reference.allowed
    nodes = needed(graph)
    opset = max((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1)
    for node in nodes:
        made = _made(node, tensors, context, opset)
        for name, value in zip(node.output, made, strict=False):
            if isinstance(value, Fingerprint) and not value.shape:
                raise Unknown(f"{called(node)} leaves no batch")
            tensors[name] = value
    return RuntimeFingerprints(tensors.get(graph.output[0].name), tensors, context, nodes)


def _made(node: onnx.NodeProto, tensors: dict[str, Any], context: RuntimeContext, opset: int) -> list[Any]:
    a = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        inputs = [tensors[name] if name else None for name in node.input]
        if (domain, node.op_type) == ("", "Split"):
            return runtime_split(context, inputs, a, len(node.output))
        follow = RUNTIME_OPERATORS.get((domain, node.op_type))
        if follow is not None:
            return [follow(context, inputs, a)]
        # A standard operator that is read from files, and of which its family says all that is needed here.
        operator = None if domain else OPERATORS.get(node.op_type)
        if operator is not None and operator.only == "moves":
            return moved_by_description(node, inputs, opset)
        if operator is not None and operator.only == "function":
            return [function_by_name(context, node.op_type, inputs, a)]
        raise Unknown("is an operator that is not known here")
    except Unknown as reason:
        raise Unknown(f"{called(node)} {reason}") from None
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Operands that do not fit together in the way known here: whatever it computes, it cannot be told to be the file's.
        raise Unknown(f"{called(node)} cannot be followed ({type(error).__name__}: {show(error)})") from error


def called(node: onnx.NodeProto) -> str:
    """Returns how a sentence names a node of the runtime's graph."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    name = node.name or (node.output[0] if node.output else "")
    return f'its node "{show(name)}" ({show(kind)})'
