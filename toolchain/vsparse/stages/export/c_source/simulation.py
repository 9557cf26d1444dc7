"""The contract `sequential` executed in numpy: float32, the stated order, a multiplication and an addition for each term."""

from __future__ import annotations

from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu, Reshape

_Array = NDArray[np.float32]


def simulate(graph: Graph, inputs: _Array, pruned_absent: bool = False) -> dict[str, _Array]:
    """Returns every activation [n, *shape] float32 of inputs [n, *input_shape], as model.c computes it where nothing is fused.

    Equal as numbers; the sign of a zero is not promised. Nothing here shares code with the C source. `pruned_absent` says whether terms
    of weights that are zero are left out or added: model.c may do either, which only an activation that is not finite tells apart.
    """
    values: dict[str, _Array] = {graph.input: np.ascontiguousarray(inputs, dtype=np.float32)}
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for node in graph.nodes:
            values[node.name] = execute(graph, node, [values[name] for name in node.inputs], pruned_absent)
    return values


def execute(graph: Graph, node: Node, inputs: list[_Array], pruned_absent: bool = False) -> _Array:
    """Returns what one operator makes of float32 arrays [n, …]; InputError for one that has no C form."""
    x = inputs[0]
    if isinstance(node, Conv):
        return _conv(graph, node, x, pruned_absent)
    if isinstance(node, Gemm):
        weight = graph.params[node.weight]
        total = np.zeros((len(x), len(weight)), np.float32) + (0 if node.bias is None else graph.params[node.bias])
        for j in range(weight.shape[1]):
            total = total + _term(weight[:, j], x[:, j, None], pruned_absent)
        return total
    if isinstance(node, AveragePool | MaxPool):
        return _pool(node, x)
    if isinstance(node, Relu):
        return np.where(x < 0, np.float32(0), x)
    if isinstance(node, Reshape):
        return x.reshape(len(x), *node.shape)
    if isinstance(node, Add):
        return x + inputs[1]
    if isinstance(node, AddConstant):
        return x + graph.params[node.constant]
    if isinstance(node, MulConstant):
        return x * graph.params[node.constant]
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, which cannot be simulated')


def _term(weight: _Array, read: _Array, pruned_absent: bool) -> _Array:
    return np.where(weight == 0, np.float32(0), weight * read) if pruned_absent else weight * read


def _conv(graph: Graph, node: Conv, x: _Array, pruned_absent: bool) -> _Array:
    weight = graph.params[node.weight]
    out, channels, kh, kw = weight.shape
    top, left, bottom, right = node.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = node.shape[1:]
    total = np.zeros((len(x), *node.shape), np.float32)
    if node.bias is not None:
        total = total + graph.params[node.bias][:, None, None]
    per_group = out // node.groups
    for c in range(channels):
        for ky in range(kh):
            for kx in range(kw):
                rows = slice(ky * node.dilation[0], ky * node.dilation[0] + (height - 1) * node.stride[0] + 1, node.stride[0])
                columns = slice(kx * node.dilation[1], kx * node.dilation[1] + (width - 1) * node.stride[1] + 1, node.stride[1])
                read = np.repeat(padded[:, c::channels][:, :, rows, columns], per_group, axis=1)
                total = total + _term(weight[:, c, ky, kx][:, None, None], read, pruned_absent)
    return total


def _pool(node: AveragePool | MaxPool, x: _Array) -> _Array:
    height, width = node.shape[1:]
    if isinstance(node, MaxPool):
        top, left, bottom, right = node.pads
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-inf)
    total: _Array | None = None
    for ky in range(node.kernel[0]):
        for kx in range(node.kernel[1]):
            read = x[
                :,
                :,
                ky : ky + (height - 1) * node.stride[0] + 1 : node.stride[0],
                kx : kx + (width - 1) * node.stride[1] + 1 : node.stride[1],
            ]
            if total is not None:
                read = np.maximum(total, read) if isinstance(node, MaxPool) else total + read
            total = read
    assert total is not None
    return total if isinstance(node, MaxPool) else total / np.float32(prod(node.kernel))
