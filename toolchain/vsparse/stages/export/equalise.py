"""Channels of equal reach: a network that computes the same in real arithmetic, and whose activations use their grids better.

Cross-layer equalisation (Nagel et al., arXiv 1906.04721, section 4.1): where f(c·x) = c·f(x) for c > 0, the outputs of one affine operator
may be multiplied channel by channel and the columns of the next divided by the same numbers. Here the scales serve the grids of
activations alone, as each output of a weight has a scale of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsparse.graph import Graph
from vsparse.graph.ir import Affine, Conv, Gemm, LeakyRelu, MaxPool, Node, Relu, Reshape

# A channel is enlarged by no more than this: one that is nearly dead needs no steps.
LARGEST_FACTOR = 64.0


@dataclass(frozen=True)
class ChannelPair:
    """An affine operator, the only one that reads its results, and the activation that this one reads."""

    first: Affine
    second: Conv | Gemm
    between: str


def pairs(graph: Graph) -> list[ChannelPair]:
    """Returns the pairs of affine operators between which channels may be scaled, in the order of the network."""
    readers = graph.consumers()
    shared = _shared(graph)
    found = []
    for node in graph.nodes:
        if not isinstance(node, Affine):
            continue
        last: Node = node
        while last.name != graph.output and len(readers[last.name]) == 1:
            after = readers[last.name][0]
            if isinstance(after, Conv | Gemm):
                whole = not isinstance(after, Conv) or after.groups == 1
                if whole and not shared & {*node.params, after.weight} and graph.shape_of(last.name)[0] % node.shape[0] == 0:
                    found.append(ChannelPair(node, after, last.name))
                break
            if not isinstance(after, Relu | LeakyRelu | MaxPool | Reshape):
                break
            last = after
    return found


def _shared(graph: Graph) -> set[str]:
    """Returns the parameters that several nodes read."""
    names = [name for node in graph.nodes for name in node.params]
    return {name for name in names if names.count(name) > 1}


def reaches(graph: Graph, pair: ChannelPair, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the largest magnitude of each channel of the first operator, from values [n, …] of the activation between the two."""
    channels = pair.first.shape[0]
    largest: NDArray[np.float64] = np.abs(values.astype(np.float64)).reshape(len(values), channels, -1).max(axis=(0, 2))
    return largest


def equalised(graph: Graph, found: Mapping[ChannelPair, NDArray[np.float64]], strengths: Mapping[ChannelPair, float]) -> Graph:
    """Returns the graph with the channels of each pair multiplied by (largest reach / own reach)^strength.

    `found` holds the `reaches`. A strength of 0 changes nothing, with 1 all channels reach equally far.
    """
    params = dict(graph.params)
    for pair, reach in found.items():
        strength = strengths.get(pair, 0.0)
        if not strength or not reach.max() > 0:
            continue
        factors = (reach.max() / np.maximum(reach, reach.max() / LARGEST_FACTOR)) ** strength
        for name in (pair.first.weight, pair.first.bias):
            if name is not None:
                params[name] = _times(params[name], factors, 0)
        # Of a flat activation each channel is a run of elements, as it was flattened in row-major order.
        columns = params[pair.second.weight].shape[1]
        params[pair.second.weight] = _times(params[pair.second.weight], 1 / np.repeat(factors, columns // len(factors)), 1)
    return graph.with_params(params)


def _times(values: NDArray[np.float32], factors: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    shape = [1] * values.ndim
    shape[axis] = -1
    return (values * factors.reshape(shape)).astype(np.float32)
