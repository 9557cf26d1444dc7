"""Packing: the physical removal of units that are already zero and unread; only slicing happens here."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Graph, Node
from vsparse.stages.compress.layers import is_reader
from vsparse.stages.compress.rules import rules_of
from vsparse.stages.compress.units import UnitClasses


def own_parameters(graph: Graph) -> Graph:
    """Returns the graph with every parameter used by one node only: a shared one gets a copy for each further node."""
    used: set[str] = set()
    params = dict(graph.params)
    nodes: list[Node] = []
    for node in graph.nodes:
        renamed: dict[str, str] = {}
        for name in node.params:
            fresh = name
            while fresh in used:
                fresh = f"{fresh}.{node.name}"
            used.add(fresh)
            params[fresh] = graph.params[name]
            renamed[name] = fresh
        nodes.append(rules_of(node).renamed(node, renamed))
    return replace(graph, nodes=tuple(nodes), params={name: params[name] for node in nodes for name in node.params})


def keep_one(graph: Graph, units: UnitClasses, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
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


def keep_groups(graph: Graph, units: UnitClasses, removed: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Returns which classes go, after giving back those that would shift a reader's groups of `size` neighbouring inputs.

    A pattern such as 2:4 counts its inputs from 0 in groups, so of a group all leave or none.
    """
    removed = removed.copy()
    read = [units.classes[node.inputs[0]] for node in graph.nodes if is_reader(node)]
    groups = [classes.reshape(-1, size) for classes in read if len(classes) % size == 0]
    while True:
        back = [group for one in groups for group in one if removed[group].any() and not removed[group].all()]
        if not back:
            return removed
        removed[np.concatenate(back)] = False


def pack(
    graph: Graph, exact: dict[str, list[Fraction]], units: UnitClasses, removed: NDArray[np.bool_]
) -> tuple[Graph, dict[str, list[Fraction]]]:
    """Returns the graph without the removed classes, and its exact biases.

    Raises AssertionError where an entry that is cut off could matter: a non-zero weight that reads a removed unit, which
    would be a defect of the liveness analysis and never of the input.
    """
    params = dict(graph.params)
    exact = dict(exact)
    nodes: list[Node] = []
    for node in graph.nodes:
        alive = ~removed[units.classes[node.name]]
        alive_in = ~removed[units.classes[node.inputs[0]]]
        node = rules_of(node).pack(node, graph, alive, alive_in, params, exact)
        nodes.append(replace(node, shape=(int(alive.sum()), *node.shape[1:])))
    return replace(graph, nodes=tuple(nodes), params=params), exact
