"""Which kernels compute each layer: by what they cost, before anything is emitted. No choice here changes a bit of a result.

Both texts of a network read one set of tables wherever they can. A convolution whose weights the text with vectors would read in another
order, for less than `OWN_TABLES` of the time, has tables of its own there, beside those of the text without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Affine, Conv, Gemm, Graph
from vsparse.stages.export.c_source.costs import KernelCosts
from vsparse.stages.export.c_source.geometry import round_up
from vsparse.stages.export.c_source.layers import FOUR, SLICE, ConvKernels, GemmKernels, LayerKernels, fours_of, kept_of
from vsparse.stages.export.c_source.partition import even_cuts, tiles_of
from vsparse.stages.export.c_source.tiles import BLOCK

OWN_TABLES = 0.95
# Beyond this many positions lanes of output channels are not considered: each of their tiles is a call of its own.
FEW_POSITIONS = 64
# Rows of a block that has a list of its own: multiples of the widest vector, `UNIT`.
LISTED_BLOCKS = (64, 32, 16)
UNIT = 16


@dataclass(frozen=True)
class _Option:
    """One way to compute a layer, and the nanoseconds that it takes."""

    cost: float
    kernels: ConvKernels


def select_kernels(graph: Graph, costs: KernelCosts) -> dict[str, LayerKernels]:
    """Returns the kernels of each convolution and fully connected layer by its name."""
    found: dict[str, LayerKernels] = {}
    for node in graph.nodes:
        if isinstance(node, Conv):
            found[node.name] = _conv(graph, node, costs)
        elif isinstance(node, Gemm):
            found[node.name] = _gemm(graph.params[node.weight], costs)
    return found


def leaves_zeros_out(graph: Graph, node: Affine, kernels: Mapping[str, LayerKernels], vectors: bool) -> bool:
    """Returns whether the text with vectors, or the one without, multiplies fewer weights of a layer than there are."""
    chosen, weight = kernels[node.name], graph.params[node.weight]
    if isinstance(chosen, GemmKernels):
        return chosen.form != "dense" and not bool((weight != 0).all())
    assert isinstance(node, Conv)
    if vectors and chosen.own == "tiles":
        return any(not tile.full and len(tile.columns) < weight[0].size for tile in chosen.tiles)
    if vectors and chosen.own == "channels":
        return not bool(weight.reshape(len(weight), -1).any(axis=0).all())
    return not bool(kept_of(graph, node).all())


def _conv(graph: Graph, node: Conv, costs: KernelCosts) -> ConvKernels:
    weight = graph.params[node.weight]
    flat = weight.reshape(len(weight), -1)
    positions = node.shape[1] * node.shape[2]
    few = node.groups == 1 and positions <= FEW_POSITIONS
    shared = _shared(graph, node, flat, positions, few, costs)
    tiles, cost = tiles_of(flat, node.groups, positions, costs)
    own = _Option(cost, ConvKernels(shared.kernels.fours, FOUR, "positions", "tiles", tuple(tiles)))
    if few:
        used = int(np.count_nonzero(flat.any(axis=0)))
        cost = -(-len(flat) // BLOCK) * costs.block(used, positions)
        own = min(own, _Option(cost, ConvKernels(shared.kernels.fours, FOUR, "positions", "channels")), key=lambda option: option.cost)
    return own.kernels if own.cost < OWN_TABLES * shared.cost else shared.kernels


def _shared(graph: Graph, node: Conv, flat: NDArray[np.float32], positions: int, few: bool, costs: KernelCosts) -> _Option:
    """Returns the best way to compute a convolution from the tables of the text without vectors."""
    fours, terms = fours_of(graph, node), flat.shape[1]
    lists = sum(costs.tile(1, int(count), positions) for count in kept_of(graph, node).sum(axis=1))
    if not fours:
        return _Option(lists, ConvKernels(0, FOUR, "positions"))
    dense = node.groups * sum(costs.tile(rows, terms, positions) for rows in even_cuts(FOUR * fours, terms, positions, costs))
    best = _Option(dense + lists, ConvKernels(fours, FOUR, "positions"))
    if few and len(flat) % BLOCK == 0:
        lanes = len(flat) // BLOCK * costs.block(terms, positions)
        best = min(best, _Option(lanes, ConvKernels(fours, BLOCK, "channels")), key=lambda option: option.cost)
    return best


def _gemm(weight: NDArray[np.float32], costs: KernelCosts) -> GemmKernels:
    kept = weight != 0
    dense = weight.shape[1] * round_up(len(weight), UNIT) / UNIT * costs.dense_row
    listed = {block: _listed(kept, block) * costs.listed_row for block in LISTED_BLOCKS}
    longest = np.sort(kept.sum(axis=1))[::-1][::SLICE]
    sparse = int(longest.sum()) * SLICE / UNIT * costs.sparse_row
    block = min(listed, key=lambda rows: listed[rows])
    if min(dense, listed[block]) > sparse:
        return GemmKernels("sparse")
    return GemmKernels("dense") if dense <= listed[block] else GemmKernels("listed", block)


def _listed(kept: NDArray[np.bool_], block: int) -> float:
    """Returns how many terms blocks with lists of their own multiply, in units of 16 rows."""
    blocks = [kept[start : start + block] for start in range(0, len(kept), block)]
    return sum(float(rows.any(axis=0).sum()) * round_up(len(rows), UNIT) / UNIT for rows in blocks)
