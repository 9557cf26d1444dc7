"""Half-precision networks: every parameter rounded to float16, the graph marked as storing fp16 (docs/numerics.md, section 8)."""

from __future__ import annotations

from dataclasses import replace
from math import isinf

import numpy as np

from vsparse.errors import InputError
from vsparse.graph import Graph, validate
from vsparse.graph.ir import Clip, Node, Pad
from vsparse.graph.quantised import is_quantised
from vsparse.graph.shapes import show


def half(graph: Graph, wide_sums: bool = False) -> Graph:
    """Returns the graph with parameters that are float16 numbers; those below the smallest one become zero.

    With `wide_sums` its file types sums as float32 (docs/numerics.md, section 8.3).
    The ends of clips and what pads round likewise. Raises InputError that names a parameter or node with a number that is too large, and
    for a quantised graph.
    """
    if is_quantised(graph):
        raise InputError("the network is quantised; round the float32 one to half precision")
    params = {}
    for name, value in graph.params.items():
        with np.errstate(over="ignore", under="ignore"):
            params[name] = value.astype(np.float16).astype(np.float32)
        if not np.isfinite(params[name]).all():
            raise InputError(f'the parameter "{show(name)}" is beyond 65504, the largest float16 number; leave fp16 out, or rescale')
    nodes = tuple(_half_node(node) for node in graph.nodes)
    return validate(replace(graph, nodes=nodes, params=params, integers={}, storage="fp16", wide_sums=wide_sums))


def _half_node(node: Node) -> Node:
    """Returns the node with those numbers rounded that a float16 file stores as tensors: the ends of a clip, what pads."""
    if isinstance(node, Clip):
        return replace(node, lowest=_rounded(node, node.lowest), highest=_rounded(node, node.highest))
    return replace(node, value=_rounded(node, node.value)) if isinstance(node, Pad) else node


def _rounded(node: Node, value: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(np.float16(value))
    if isinf(rounded) and not isinf(value):
        raise InputError(
            f'node "{show(node.name)}" ({type(node).__name__}) has the number {value:g}, beyond 65504, the largest of float16; leave fp16 '
            "out, or rescale"
        )
    return rounded
