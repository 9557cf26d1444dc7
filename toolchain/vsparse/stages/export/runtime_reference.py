"""The fingerprints of a graph as it was read and will be bounded: what the runtime's graph has to come to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from math import inf

import numpy as np
from numpy.typing import NDArray

from vsparse.bounds.fusion import one_sums
from vsparse.errors import InputError
from vsparse.graph import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Conv,
    DivConstant,
    FakeQuant,
    Gemm,
    Graph,
    LeakyRelu,
    MaxPool,
    Move,
    MulConstant,
    Neg,
    Node,
    Relu,
    Reshape,
    Sub,
    Unary,
)
from vsparse.stages.export.runtime_functions import function_name
from vsparse.stages.export.runtime_hashes import Algebra, Fingerprint, QuantisationGrid, joined
from vsparse.stages.export.runtime_windows import HashArray


class Reference:
    """Evaluates a graph: `values` has the fingerprints of every activation, `known` all of their hashes, sorted."""

    def __init__(self, graph: Graph, algebra: Algebra, batch: int, one_sample: bool = False) -> None:
        # `one_sample`: the file knows no other batch, so what goes along the batch mixes nothing.
        self.graph, self.algebra, self.one_sample = graph, algebra, one_sample
        self.readers = graph.consumers()
        self.producers = {node.name: node for node in graph.nodes}
        self.input = algebra.input((batch, *graph.input_shape))
        self.values: dict[str, Fingerprint] = {graph.input: self.input}
        self._merged = one_sums(graph).keys()
        algebra.record()
        for node in graph.nodes:
            self.values[node.name] = fingerprint(node, self)
        self.output = self.values[graph.output]
        self.known = np.unique(np.concatenate([value.hashes.reshape(-1) for value in self.values.values()]))
        self.allowed = algebra.recorded(self.known)

    # Sums: merged exactly where `bounds/fusion.py` charges one sum, and products of one factor, which round once either way.

    def sum(self, node: Add | Sub | AddConstant) -> Fingerprint:
        """Returns a sum of two activations, or of one and a constant."""
        merged = node.name in self._merged
        x = self._terms(node.inputs[0], merged)
        if isinstance(node, AddConstant):
            return self.algebra.plus(self.values[node.inputs[0]], x, self.graph.params[node.constant])
        y = self._terms(node.inputs[1], merged)
        return self.algebra.summed(x + y if isinstance(node, Add) else x - y)

    def _terms(self, name: str, merged: bool) -> HashArray:
        """Returns what an activation contributes to a sum: its own terms where a runtime may compute them there, else itself."""
        total: HashArray = np.zeros((), np.uint64)
        pending = [(name, 1)]
        while pending:
            name, sign = pending.pop()
            producer, term = self.producers.get(name), self.values[name].hashes
            if len(self.readers[name]) == 1 and name != self.graph.output:
                if isinstance(producer, Neg):
                    pending.append((producer.inputs[0], -sign))
                    continue
                if merged and isinstance(producer, Add | Sub):
                    pending += [(producer.inputs[0], sign), (producer.inputs[1], sign if isinstance(producer, Add) else -sign)]
                    continue
                if merged and isinstance(producer, AddConstant):
                    pending.append((producer.inputs[0], sign))
                    term = self.algebra.constants(self.graph.params[producer.constant])
                elif isinstance(producer, MulConstant) or (merged and isinstance(producer, Affine)):
                    term = self.values[name].terms
            total = total + term if sign > 0 else total - term
        return total


@singledispatch
def fingerprint(node: Node, r: Reference) -> Fingerprint:
    """Returns what a node makes of the values of its inputs.

    Moves and functions of one number need no rule of their own: the first follow from their index maps, of the second nothing is known
    but their names and numbers. Rules are for what a runtime may compute in another way that comes to the same.
    """
    raise InputError(f'node "{node.name}" ({type(node).__name__}) has no fingerprint')


def _operand(node: Node, r: Reference) -> Fingerprint:
    return r.values[node.inputs[0]]


@fingerprint.register
def _(node: Move, r: Reference) -> Fingerprint:
    values = [r.values[name] for name in node.inputs]
    return _picked(r.algebra, values, node.index_map([value.shape[1:] for value in values]), node.fill)


@fingerprint.register
def _(node: Unary, r: Reference) -> Fingerprint:
    return r.algebra.function(_operand(node, r), function_name(node, r.graph))


@fingerprint.register
def _(node: Reshape, r: Reference) -> Fingerprint:
    return _operand(node, r).moved(lambda array: array.reshape(len(array), *node.shape))


@fingerprint.register
def _(node: Conv, r: Reference) -> Fingerprint:
    weight, bias = r.graph.params[node.weight], None if node.bias is None else r.graph.params[node.bias]
    return r.algebra.convolution(_operand(node, r), weight, bias, node.stride, node.pads, node.dilation, node.groups)


@fingerprint.register
def _(node: Gemm, r: Reference) -> Fingerprint:
    return r.algebra.linear(_operand(node, r), r.graph.params[node.weight], None if node.bias is None else r.graph.params[node.bias])


@fingerprint.register
def _(node: Add | Sub | AddConstant, r: Reference) -> Fingerprint:
    return r.sum(node)


@fingerprint.register
def _(node: MulConstant, r: Reference) -> Fingerprint:
    return r.algebra.times(_operand(node, r), r.graph.params[node.constant])


@fingerprint.register
def _(node: DivConstant, r: Reference) -> Fingerprint:
    return r.algebra.divided(_operand(node, r), r.graph.params[node.constant])


@fingerprint.register
def _(node: Neg, r: Reference) -> Fingerprint:
    return r.algebra.negated(_operand(node, r))


@fingerprint.register
def _(node: MaxPool, r: Reference) -> Fingerprint:
    return r.algebra.maximum(_operand(node, r), node.kernel, node.stride, node.pads)


@fingerprint.register
def _(node: AveragePool, r: Reference) -> Fingerprint:
    return r.algebra.average(_operand(node, r), node.kernel, node.stride)


@fingerprint.register
def _(node: Relu, r: Reference) -> Fingerprint:
    return r.algebra.clipped(_operand(node, r), 0.0, inf)


@fingerprint.register
def _(node: Clip, r: Reference) -> Fingerprint:
    return r.algebra.clipped(_operand(node, r), node.lowest, node.highest)


@fingerprint.register
def _(node: LeakyRelu, r: Reference) -> Fingerprint:
    return r.algebra.leaky(_operand(node, r), node.slope)


@fingerprint.register
def _(node: FakeQuant, r: Reference) -> Fingerprint:
    return r.algebra.quantised(_operand(node, r), QuantisationGrid(node.scale, *node.steps))


def _picked(algebra: Algebra, values: Sequence[Fingerprint], index_map: NDArray[np.int64], fill: float) -> Fingerprint:
    """Returns the elements of activations that an index map names, one activation after the other; −1 names the constant `fill`."""
    indices = index_map.reshape(-1)

    def pick(arrays: list[HashArray], *constant: HashArray) -> HashArray:
        flat = [array.reshape(len(array), -1) for array in arrays] + [np.full((len(arrays[0]), 1), one) for one in constant]
        return np.concatenate(flat, axis=1)[:, indices].reshape(len(flat[0]), *index_map.shape)

    if (indices >= 0).all():
        return values[0].moved(lambda array: pick([array])) if len(values) == 1 else joined(values, pick)
    hashes = algebra.constants(np.array(fill, np.float32))
    # The constant, the last element, is counted from behind; it is a sum of one term where the others are sums.
    total = None if all(value.total is None for value in values) else pick([value.terms for value in values], hashes)
    return Fingerprint(
        pick([value.hashes for value in values], hashes), total, grid=_grid_around(values, fill), integers=values[0].integers
    )


def _grid_around(values: Sequence[Fingerprint], number: float) -> QuantisationGrid | None:
    """Returns the grid that values lie on together with a constant."""
    grid = values[0].grid
    holds_zero = number == 0 and grid is not None and grid.lowest <= 0 <= grid.highest
    return grid if holds_zero and all(value.grid == grid for value in values) else None


def padded(algebra: Algebra, x: Fingerprint, around: list[tuple[int, int]], number: float) -> Fingerprint:
    """Returns an activation with a constant put around it."""
    if not any(map(any, around)):
        return x  # as it is, with all that is known of it
    constant = algebra.constants(np.array(number, np.float32))
    total = None if x.total is None else np.pad(x.total, around, constant_values=constant)
    return Fingerprint(np.pad(x.hashes, around, constant_values=constant), total, grid=_grid_around([x], number), integers=x.integers)
