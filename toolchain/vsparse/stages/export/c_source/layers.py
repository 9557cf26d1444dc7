"""The weights of each layer as tables, in the forms in which the texts of a network read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import AddConstant, Conv, Gemm, Graph, MulConstant
from vsparse.stages.export.c_source.geometry import WIDEST
from vsparse.stages.export.c_source.partition import ChannelTile
from vsparse.stages.export.c_source.tables import Tables
from vsparse.stages.export.c_source.weights import Reader

# Below this fraction of non-zero weights a convolution's lists are faster than loops over all weights (benchmarks/c).
SPARSE_CONV = 0.75
# Output channels that a text without vectors computes together at most, rows of a dense block, and of a slice of sparse ones.
FOUR = 4
BLOCK = 64
SLICE = 8


@dataclass(frozen=True)
class ConvKernels:
    """How a convolution is computed, and so in which tables its weights lie.

    `fours` blocks of four output channels, in each group, have all weights, in blocks [terms][block]; the others are lists. The text with
    vectors has lanes of positions or of output channels there, or computes all from tables of its own: `tiles`, or blocks of channels.
    """

    fours: int
    block: int
    lanes: Literal["positions", "channels"]
    own: Literal["", "tiles", "channels"] = ""
    tiles: tuple[ChannelTile, ...] = ()


@dataclass(frozen=True)
class GemmKernels:
    """How a fully connected layer is computed, and so in which tables its weights lie, in both texts.

    `dense`: blocks of 64 rows with all weights; `listed`: blocks of `block` rows with a list of their inputs; `sparse`: rows with lists.
    """

    form: Literal["dense", "listed", "sparse"]
    block: int = BLOCK


LayerKernels = ConvKernels | GemmKernels


def add_tables(tables: Tables, graph: Graph, kernels: Mapping[str, LayerKernels]) -> None:
    """Adds the tables of values of weights, biases, constants, and which rows they belong to; most of them every text reads."""
    for node in graph.nodes:
        chosen = kernels.get(node.name)
        if isinstance(node, Conv) and isinstance(chosen, ConvKernels):
            _conv(tables, tables.table_of(node.name), graph, node, chosen)
        elif isinstance(node, Gemm) and isinstance(chosen, GemmKernels):
            name, weight, bias = tables.table_of(node.name), graph.params[node.weight], bias_of(graph, node)
            if chosen.form == "sparse":
                _sparse_rows(tables, name, weight, bias)
            elif chosen.form == "listed":
                _listed_rows(tables, name, weight, bias, chosen.block)
            else:
                _dense_rows(tables, name, weight, bias)
        elif isinstance(node, AddConstant | MulConstant):
            tables.floats(f"{tables.table_of(node.name)}_constant", graph.params[node.constant])


def fours_of(graph: Graph, node: Conv) -> int:
    """Returns how many blocks of four output channels, in each group, are computed with all weights; the others are lists."""
    weight = graph.params[node.weight]
    return len(weight) // node.groups // FOUR if np.count_nonzero(weight) >= SPARSE_CONV * weight.size else 0


def singles_of(graph: Graph, node: Conv) -> NDArray[np.int64]:
    """Returns the output channels that are lists of their non-zero weights."""
    per_group = len(graph.params[node.weight]) // node.groups
    dense = FOUR * fours_of(graph, node)
    return np.array([o for o in range(per_group * node.groups) if o % per_group >= dense], dtype=np.int64)


def kept_of(graph: Graph, node: Conv) -> NDArray[np.bool_]:
    """Returns which weights the lists have, as a mask [lists, in/groups · kh · kw]."""
    weight = graph.params[node.weight]
    kept: NDArray[np.bool_] = weight.reshape(len(weight), -1)[singles_of(graph, node)] != 0
    return kept


def blocks_of(weight: NDArray[np.float32], block: int) -> list[NDArray[np.bool_]]:
    """Returns for each block of rows of a weight [out, in] which inputs one of its rows has a weight for."""
    return [(weight[start : start + block] != 0).any(axis=0) for start in range(0, len(weight), block)]


def bias_of(graph: Graph, node: Conv | Gemm) -> NDArray[np.float32]:
    """Returns the bias of a layer, zeros where it has none."""
    return np.zeros(node.shape[0], np.float32) if node.bias is None else graph.params[node.bias]


def _conv(tables: Tables, name: str, graph: Graph, node: Conv, kernels: ConvKernels) -> None:
    weight = graph.params[node.weight]
    flat = weight.reshape(len(weight), -1)
    per_group, reader = len(weight) // node.groups, _reader(kernels)
    tables.floats(f"{name}_bias", bias_of(graph, node), slack=kernels.own == "channels" and bool(len(weight) % WIDEST))
    if kernels.fours:
        rows = np.concatenate([flat[g * per_group :][: kernels.fours * FOUR] for g in range(node.groups)])
        blocks = rows.reshape(-1, kernels.block, flat.shape[1])
        tables.floats(f"{name}_blocks", np.ascontiguousarray(blocks.transpose(0, 2, 1)), reader)
    single = singles_of(graph, node)
    if len(single):
        kept = kept_of(graph, node)
        tables.floats(f"{name}_weight", flat[single][kept], reader)
        tables.integers(f"{name}_start", np.concatenate([[0], np.cumsum(kept.sum(axis=1))]), reader, kind="uint32_t")
        if len(single) < len(weight):
            tables.indexes(f"{name}_channel", single, reader)


def _reader(kernels: ConvKernels) -> Reader:
    return "scalar" if kernels.own else "both"


def _dense_rows(tables: Tables, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    blocks = [weight[start : start + BLOCK].T for start in range(0, len(weight), BLOCK)]
    slack = bool(len(weight) % WIDEST)
    tables.floats(f"{name}_weight", np.concatenate([np.ascontiguousarray(block).reshape(-1) for block in blocks]), slack=slack)
    tables.floats(f"{name}_bias", bias, slack=slack)


def _listed_rows(tables: Tables, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32], block: int) -> None:
    slack = bool(len(weight) % WIDEST)
    used = blocks_of(weight, block)
    values = [weight[i * block : (i + 1) * block, kept].T.reshape(-1) for i, kept in enumerate(used)]
    tables.floats(f"{name}_weight", np.concatenate(values), slack=slack)
    tables.indexes(f"{name}_index", np.concatenate([np.flatnonzero(kept) for kept in used]))
    tables.integers(f"{name}_start", np.cumsum([0, *(int(kept.sum()) for kept in used)]), kind="uint32_t")
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
