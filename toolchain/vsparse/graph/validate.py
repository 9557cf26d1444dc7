"""Structural check of a graph, run after every read and every transformation."""

from __future__ import annotations

import numpy as np

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Shape
from vsparse.graph.operators.moves import Pad, Transpose
from vsparse.graph.operators.pooling import MaxPool
from vsparse.graph.operators.reshape import Reshape
from vsparse.graph.rules import check_values
from vsparse.graph.shapes import output_shape, show


def validate(graph: Graph) -> Graph:
    """Returns the graph when it is well formed; otherwise raises InputError that names the node or the parameter.

    Checked: names are unique, every node reads only what comes before it (topological order, no cycle), each shape is the one
    its operator makes, the output exists, and every parameter that is used is there, float32, finite, and of the right shape.
    """
    sizes = {name: value.shape for name, value in graph.params.items()}
    shapes: dict[str, Shape] = {graph.input: graph.input_shape}
    used: set[str] = set()
    padded: set[str] = set()
    for node in graph.nodes:
        if node.name in shapes:
            raise InputError(f'two activations have the name "{show(node.name)}"; rename one of them')
        missing = [name for name in node.inputs if name not in shapes]
        if missing:
            raise InputError(f'node "{show(node.name)}" reads "{show(missing[0])}", which no earlier node makes')
        shape = output_shape(node, [shapes[name] for name in node.inputs], sizes)
        if shape != node.shape:
            raise InputError(f'node "{show(node.name)}" is said to have shape {node.shape} but makes {shape}')
        shapes[node.name] = shape
        used.update(node.params)
        check_values(node, graph.params)
        if isinstance(node, Pad) or (isinstance(node, Reshape | Transpose) and node.inputs[0] in padded):
            padded.add(node.name)
        if isinstance(node, MaxPool) and node.inputs[0] in padded:
            # Seen in ONNX Runtime 1.31, also of a 1-D pool and between Transposes: max([0, x]) becomes x where x is negative.
            raise InputError(
                f'MaxPool "{show(node.name)}" reads padding, which ONNX Runtime moves into it and ignores; give the pool its own padding'
            )
    if graph.output not in shapes:
        raise InputError(f'the graph\'s output "{show(graph.output)}" is made by no node')
    for name in used:
        value = graph.params[name]
        if value.dtype != np.float32:
            raise InputError(f'the parameter "{show(name)}" is {value.dtype}; float32 is wanted')
        if not np.isfinite(value).all():
            raise InputError(f'the parameter "{show(name)}" holds NaN or infinity; retrain, or export the network again')
    for name, stored in graph.integers.items():
        if name in used and not np.array_equal(stored.floats(), graph.params[name]):
            raise InputError(f'the parameter "{show(name)}" differs from its integers times their scale')
    return graph
