"""The fingerprints of a graph as it was read and will be bounded: what the runtime's graph has to come to."""

from __future__ import annotations

import numpy as np

from vsparse.bounds.fusion import one_sums
from vsparse.errors import InputError
from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    DivConstant,
    FakeQuant,
    Gemm,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)
from vsparse.stages.export.runtime_hashes import Algebra, Grid, Hashes, Value, joined


class Reference:
    """Evaluates a graph: `values` has the fingerprints of every activation, `known` all of their hashes, sorted."""

    def __init__(self, graph: Graph, algebra: Algebra, batch: int, one_sample: bool = False) -> None:
        # `one_sample`: the file knows no other batch, so what goes along the batch mixes nothing.
        self.graph, self.algebra, self.one_sample = graph, algebra, one_sample
        self.readers = graph.consumers()
        self.producers = {node.name: node for node in graph.nodes}
        self.input = algebra.input((batch, *graph.input_shape))
        self.values: dict[str, Value] = {graph.input: self.input}
        self._merged = one_sums(graph).keys()
        for node in graph.nodes:
            self.values[node.name] = self._value(node)
        self.output = self.values[graph.output]
        self.known = np.unique(np.concatenate([value.hashes.reshape(-1) for value in self.values.values()]))

    def _value(self, node: Node) -> Value:
        algebra, x = self.algebra, self.values[node.inputs[0]]
        if isinstance(node, Affine):
            weight, bias = self.graph.params[node.weight], None if node.bias is None else self.graph.params[node.bias]
            if isinstance(node, Conv):
                return algebra.convolution(x, weight, bias, node.stride, node.pads, node.dilation, node.groups)
            assert isinstance(node, Gemm)
            return algebra.linear(x, weight, bias)
        if isinstance(node, Add | Sub | AddConstant):
            return self._sum(node)
        if isinstance(node, MulConstant):
            return algebra.times(x, self.graph.params[node.constant])
        if isinstance(node, DivConstant):
            return algebra.divided(x, self.graph.params[node.constant])
        if isinstance(node, MaxPool):
            return algebra.maximum(x, node.kernel, node.stride, node.pads)
        if isinstance(node, AveragePool):
            return algebra.average(x, node.kernel, node.stride)
        if isinstance(node, FakeQuant):
            return algebra.quantised(x, Grid(node.scale, *node.steps))
        return self._curve_or_move(node, x)

    def _curve_or_move(self, node: Node, x: Value) -> Value:
        algebra = self.algebra
        if isinstance(node, Relu):
            return algebra.clipped(x, 0.0, float("inf"))
        if isinstance(node, Clip):
            return algebra.clipped(x, node.lowest, node.highest)
        if isinstance(node, LeakyRelu):
            return algebra.leaky(x, node.slope)
        if isinstance(node, Sigmoid | Tanh):
            return algebra.function(x, type(node).__name__)
        if isinstance(node, Neg):
            return algebra.negated(x)
        if isinstance(node, Reshape):
            return x.moved(lambda array: array.reshape(len(array), *node.shape))
        if isinstance(node, Transpose):
            return x.moved(lambda array: array.transpose(0, *(i + 1 for i in node.order)))
        if isinstance(node, Concat):
            return joined([self.values[name] for name in node.inputs], lambda arrays: np.concatenate(arrays, axis=node.axis + 1))
        if isinstance(node, Slice):
            places = tuple(slice(*place) for place in zip(node.starts, node.stops, node.steps, strict=True))
            return x.moved(lambda array: array[(slice(None), *places)])
        if isinstance(node, Pad):
            around = [(0, 0), *zip(node.before, node.after, strict=True)]
            return padded(algebra, x, around, node.value)
        raise InputError(f'node "{node.name}" ({type(node).__name__}) has no fingerprint')

    # Sums: merged exactly where `bounds/fusion.py` charges one sum, and products of one factor, which round once either way.

    def _sum(self, node: Add | Sub | AddConstant) -> Value:
        merged = node.name in self._merged
        x = self._terms(node.inputs[0], merged)
        if isinstance(node, AddConstant):
            return self.algebra.plus(self.values[node.inputs[0]], x, self.graph.params[node.constant])
        y = self._terms(node.inputs[1], merged)
        return self.algebra.summed(x + y if isinstance(node, Add) else x - y)

    def _terms(self, name: str, merged: bool) -> Hashes:
        """Returns what an activation contributes to a sum: its own terms where a runtime may compute them there, else itself."""
        total: Hashes = np.zeros((), np.uint64)
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


def padded(algebra: Algebra, x: Value, around: list[tuple[int, int]], number: float) -> Value:
    """Returns an activation with a constant put around it."""
    if not any(map(any, around)):
        return x  # as it is, with all that is known of it
    constant = algebra.constants(np.array(number, np.float32))
    total = None if x.total is None else np.pad(x.total, around, constant_values=constant)
    grid = x.grid if number == 0 and x.grid is not None and x.grid.lowest <= 0 <= x.grid.highest else None
    return Value(np.pad(x.hashes, around, constant_values=constant), total, grid=grid, integers=x.integers)
