"""The weights of each layer as tables, in the forms in which both texts of a network read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import AddConstant, Conv, Gemm, Graph, MulConstant
from vsparse.stages.export.c_source.geometry import WIDEST
from vsparse.stages.export.c_source.tables import Tables

# Below these fractions of non-zero weights lists of indexes are faster than loops over all weights (benchmarks/c).
SPARSE_CONV = 0.75
SPARSE_GEMM = 0.15
BLOCK = 64
SLICE = 8


def add_tables(tables: Tables, graph: Graph) -> None:
    """Adds the tables that every text of the network reads: values of weights, biases, constants, and which rows they belong to."""
    for node in graph.nodes:
        if isinstance(node, Conv):
            _conv(tables, tables.table_of(node.name), graph, node)
        elif isinstance(node, Gemm):
            add = _sparse_rows if is_sparse(graph, node) else _dense_rows
            add(tables, tables.table_of(node.name), graph.params[node.weight], bias_of(graph, node))
        elif isinstance(node, AddConstant | MulConstant):
            tables.floats(f"{tables.table_of(node.name)}_constant", graph.params[node.constant])


def fours_of(graph: Graph, node: Conv) -> int:
    """Returns how many blocks of four output channels, in each group, are computed with all weights; the others are lists."""
    weight = graph.params[node.weight]
    return len(weight) // node.groups // 4 if np.count_nonzero(weight) >= SPARSE_CONV * weight.size else 0


def singles_of(graph: Graph, node: Conv) -> NDArray[np.int64]:
    """Returns the output channels that are lists of their non-zero weights."""
    per_group = len(graph.params[node.weight]) // node.groups
    dense = 4 * fours_of(graph, node)
    return np.array([o for o in range(per_group * node.groups) if o % per_group >= dense], dtype=np.int64)


def kept_of(graph: Graph, node: Conv) -> NDArray[np.bool_]:
    """Returns which weights the lists have, as a mask [lists, in/groups · kh · kw]."""
    weight = graph.params[node.weight]
    kept: NDArray[np.bool_] = weight.reshape(len(weight), -1)[singles_of(graph, node)] != 0
    return kept


def is_sparse(graph: Graph, node: Gemm) -> bool:
    """Returns whether a fully connected layer is lists of non-zero weights."""
    weight = graph.params[node.weight]
    return bool(np.count_nonzero(weight) < SPARSE_GEMM * weight.size)


def bias_of(graph: Graph, node: Conv | Gemm) -> NDArray[np.float32]:
    """Returns the bias of a layer, zeros where it has none."""
    return np.zeros(node.shape[0], np.float32) if node.bias is None else graph.params[node.bias]


def _conv(tables: Tables, name: str, graph: Graph, node: Conv) -> None:
    weight = graph.params[node.weight]
    flat = weight.reshape(len(weight), -1)
    per_group, fours = len(weight) // node.groups, fours_of(graph, node)
    tables.floats(f"{name}_bias", bias_of(graph, node))
    if fours:
        blocks = np.concatenate([flat[g * per_group :][: fours * 4].reshape(fours, 4, -1) for g in range(node.groups)])
        tables.floats(f"{name}_weight4", np.ascontiguousarray(blocks.transpose(0, 2, 1)))
    single = singles_of(graph, node)
    if len(single):
        kept = kept_of(graph, node)
        tables.floats(f"{name}_weight", flat[single][kept])
        tables.integers(f"{name}_start", np.concatenate([[0], np.cumsum(kept.sum(axis=1))]), kind="uint32_t")
        if len(single) < len(weight):
            tables.indexes(f"{name}_channel", single)


def _dense_rows(tables: Tables, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    blocks = [weight[start : start + BLOCK].T for start in range(0, len(weight), BLOCK)]
    slack = bool(len(weight) % WIDEST)
    tables.floats(f"{name}_weight", np.concatenate([np.ascontiguousarray(block).reshape(-1) for block in blocks]), slack=slack)
    tables.floats(f"{name}_bias", bias, slack=slack)


def _sparse_rows(tables: Tables, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    out = len(weight)
    counts = np.count_nonzero(weight, axis=1)
    # Rows of about one length lie side by side, so that few zeros fill up the shorter ones.
    order = np.argsort(-counts, kind="stable")
    values: list[NDArray[np.float32]] = []
    indexes: list[NDArray[np.int64]] = []
    starts = [0]
    for start in range(0, out, SLICE):
        rows = order[start : start + SLICE]
        longest = int(counts[rows[0]])
        value, index = np.zeros((longest, SLICE), np.float32), np.zeros((longest, SLICE), np.int64)
        for lane, row in enumerate(rows):
            (kept,) = np.nonzero(weight[row])
            value[: len(kept), lane], index[: len(kept), lane] = weight[row, kept], kept
        values.append(value.reshape(-1))
        indexes.append(index.reshape(-1))
        starts.append(starts[-1] + longest)
    lanes = np.zeros(-(-out // SLICE) * SLICE, np.float32)
    lanes[:out] = bias[order]
    tables.floats(f"{name}_weight", np.concatenate(values))
    tables.indexes(f"{name}_index", np.concatenate(indexes))
    tables.integers(f"{name}_start", np.array(starts, dtype=np.int64), kind="uint32_t")
    tables.indexes(f"{name}_row", order.astype(np.int64))
    tables.floats(f"{name}_bias", lanes)
