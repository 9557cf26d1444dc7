"""Packing: the physical removal of units that are already zero and unread; only slicing happens here."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import AddConstant, Affine, Conv, Graph, MulConstant, Node, Shape
from vsparse.stages.compress.units import Units, is_depthwise, is_reader

Exact = dict[str, list[Fraction]]


def keep_one(graph: Graph, units: Units, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which classes go, after giving back one class of zero units to every activation that would have none."""
    removed = removed.copy()
    activations = [units.classes[name] for name in [graph.input, *(node.name for node in graph.nodes)]]
    given_back: list[int] = []
    for classes in activations:
        if removed[classes].all():
            removed[classes[0]] = False
            given_back.append(int(classes[0]))
    for item in given_back:  # a later one may serve the activation of an earlier one too
        removed[item] = True
        if any(removed[classes].all() for classes in activations):
            removed[item] = False
    return removed


def _sliced_constant(constant: NDArray[np.float32], shape: Shape, alive: NDArray[np.bool_]) -> NDArray[np.float32]:
    axis = constant.ndim - len(shape)  # the axis of the units: constants are aligned from the right
    if axis < 0 or constant.shape[axis] == 1:
        return constant
    return np.compress(alive, constant, axis=axis)


def pack(graph: Graph, exact: Exact, units: Units, removed: NDArray[np.bool_]) -> tuple[Graph, Exact]:
    """Returns the graph without the removed classes, and its exact biases.

    Raises AssertionError where an entry that is cut off could matter: a non-zero weight that reads a removed unit, which
    would be a defect of the liveness analysis and never of the input.
    """
    params = dict(graph.params)
    exact = dict(exact)
    nodes: list[Node] = []
    for node in graph.nodes:
        alive = ~removed[units.classes[node.name]]
        if isinstance(node, Affine):
            node = _pack_affine(graph, node, alive, ~removed[units.classes[node.inputs[0]]], params, exact)
        elif isinstance(node, AddConstant | MulConstant):
            params[node.constant] = _sliced_constant(params[node.constant], node.shape, alive)
        nodes.append(replace(node, shape=(int(alive.sum()), *node.shape[1:])))
    return replace(graph, nodes=tuple(nodes), params=params), exact


def _pack_affine(
    graph: Graph, node: Affine, alive: NDArray[np.bool_], alive_in: NDArray[np.bool_], params: dict[str, NDArray[np.float32]], exact: Exact
) -> Affine:
    weight = params[node.weight]
    if is_reader(node):
        if weight[:, ~alive_in].any():
            raise AssertionError(f"{node.name} still reads a removed unit")
        weight = weight[:, alive_in]
    elif isinstance(node, Conv) and is_depthwise(node, graph.shape_of(node.inputs[0])[0]):
        node = replace(node, groups=int(alive_in.sum()))
    elif not (alive.all() and alive_in.all()):
        raise AssertionError(f"{node.name} is a grouped convolution and was to stay whole")
    params[node.weight] = np.ascontiguousarray(weight[alive])
    if node.bias is not None:
        params[node.bias] = params[node.bias][alive]
        exact[node.bias] = [value for value, stays in zip(exact[node.bias], alive.tolist(), strict=True) if stays]
    return node
