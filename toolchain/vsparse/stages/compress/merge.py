"""ReLUs that are always active: dropped; and two affine layers with nothing between them: merged where that is smaller."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.layers import Removal
from vsparse.graph.ir import Affine, Conv, Gemm, Graph, Node, Relu
from vsparse.stages.compress.liveness import BIT_EXACT, REAL
from vsparse.stages.compress.running_error import ParameterError

UNIT_ROUNDOFF_32, UNIT_ROUNDOFF_64 = 2.0**-24, 2.0**-53


def drop_relus(graph: Graph, active: set[str]) -> tuple[Graph, list[Removal]]:
    """Returns the graph without the ReLUs in `active`, which never change their input; the output's node is kept."""
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    done: list[Removal] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        if isinstance(node, Relu) and node.name in active and node.name != graph.output:
            renamed[node.name] = node.inputs[0]
            done.append(Removal(layer=node.name, kind="always-active ReLU", count=node.shape[0], exactness=BIT_EXACT))
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes)), done


def _composable(first: Node, second: Affine) -> bool:
    if isinstance(second, Conv):
        plain = second.stride == (1, 1) and second.groups == 1 and not any(second.pads)
        return isinstance(first, Conv) and first.groups == 1 and plain
    return isinstance(first, Gemm)


def _compose(graph: Graph, first: Affine, second: Affine) -> tuple[NDArray[np.float32], NDArray[np.float32], ParameterError] | None:
    """Returns weight, bias and perturbation of second∘first, or None where float32 cannot hold them or `second` is no 1×1 convolution."""
    w1, w2 = graph.params[first.weight].astype(np.float64), graph.params[second.weight].astype(np.float64)
    if w2.ndim == 4 and w2.shape[2:] != (1, 1):
        return None
    b1 = np.zeros(len(w1)) if first.bias is None else graph.params[first.bias].astype(np.float64)
    b2 = np.zeros(len(w2)) if second.bias is None else graph.params[second.bias].astype(np.float64)
    matrix, rows = w2.reshape(len(w2), -1), w1.reshape(len(w1), -1)
    gamma = 2 * (len(w1) + 2) * UNIT_ROUNDOFF_64
    weight, bias = (matrix @ rows), matrix @ b1 + b2
    with np.errstate(over="ignore"):
        stored, stored_bias = weight.astype(np.float32), bias.astype(np.float32)
    if not (np.isfinite(stored).all() and np.isfinite(stored_bias).all()):
        return None
    tiny = 2.0**-149
    slack = gamma * (np.abs(matrix) @ np.abs(rows)) + UNIT_ROUNDOFF_32 * np.abs(weight) + tiny
    slack_bias = gamma * (np.abs(matrix) @ np.abs(b1) + np.abs(b2)) + UNIT_ROUNDOFF_32 * np.abs(bias) + tiny
    shape = (len(w2), *w1.shape[1:])
    return stored.reshape(shape), stored_bias, ParameterError(slack.reshape(shape), slack_bias)


def merge_affine(graph: Graph, inexact: set[str]) -> tuple[Graph, list[Removal], dict[str, ParameterError]]:
    """Returns the graph with every pair Gemm-Gemm and Conv-1×1-Conv merged whose product has fewer weights than the two.

    Exact in real arithmetic only: products are computed in float64 and rounded to float32; the perturbation bounds the
    difference of each entry. Layers named in `inexact`, whose own bias is rounded, are left alone.
    """
    done: list[Removal] = []
    perturbations: dict[str, ParameterError] = {}
    while True:
        merged = _merge_one(graph, inexact | set(perturbations))
        if merged is None:
            return graph, done, perturbations
        graph, name, perturbation = merged
        perturbations[name] = perturbation
        done.append(Removal(layer=name, kind="merged", count=1, exactness=REAL))


def _merge_one(graph: Graph, merged: set[str]) -> tuple[Graph, str, ParameterError] | None:
    readers = graph.consumers()
    made = {node.name: node for node in graph.nodes}
    for second in graph.nodes:
        if not isinstance(second, Affine) or second.name in merged:
            continue
        first = made.get(second.inputs[0])
        # A product of a product would need the perturbation of its factors too: each layer is merged at most once.
        if not isinstance(first, Affine) or first.name in merged or first.name == graph.output or len(readers[first.name]) != 1:
            continue
        if not _composable(first, second):
            continue
        before = graph.params[first.weight].size + graph.params[second.weight].size
        if graph.params[second.weight].shape[0] * graph.params[first.weight][0].size >= before:
            continue
        composed = _compose(graph, first, second)
        if composed is None:
            continue
        weight, bias, perturbation = composed
        bias_name = second.bias or first.bias or f"{second.name}.bias"
        node = replace(first, name=second.name, shape=second.shape, weight=second.weight, bias=bias_name)
        nodes = tuple(node if other.name == second.name else other for other in graph.nodes if other.name != first.name)
        params = {**graph.params, second.weight: weight, bias_name: bias}
        return replace(graph, nodes=nodes, params=params), second.name, perturbation
    return None
