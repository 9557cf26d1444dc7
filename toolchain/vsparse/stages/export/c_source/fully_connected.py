"""C for fully connected layers: lanes of rows over all weights, over lists that a block of rows shares, or over each row's own list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_source.convolution import bias_of
from vsparse.stages.export.c_source.costs import KernelCosts
from vsparse.stages.export.c_source.geometry import round_up
from vsparse.stages.export.c_source.program import Program

# Rows of a block with all weights, and of one with a list of its own: multiples of the widest vector.
DENSE_BLOCK = 64
LISTED_BLOCKS = (64, 32, 16)
UNIT = 16
# Rows side by side, each over its own list.
SLICE = 16


def emit_gemm(program: Program, graph: Graph, node: Gemm, source: str, target: str, relu: bool, costs: KernelCosts) -> None:
    """Adds a fully connected layer, by the kernel that costs least."""
    weight, bias = graph.params[node.weight], bias_of(graph, node)
    program.use("vectors")
    kept = weight != 0
    dense = weight.shape[1] * round_up(len(weight), UNIT) / UNIT * costs.dense_row
    listed = {block: _union_terms(kept, block) * block / UNIT * costs.listed_row for block in LISTED_BLOCKS}
    lengths = np.sort(kept.sum(axis=1))[::-1][::SLICE]
    sparse = int(lengths.sum()) * costs.sparse_row
    block = min(listed, key=lambda rows: listed[rows])
    if min(dense, listed[block]) > sparse:
        _sparse_rows(program, weight, bias, source, target, relu)
    elif dense <= listed[block]:
        _dense_rows(program, weight, bias, source, target, relu)
    else:
        _listed_rows(program, weight, bias, block, source, target, relu)


def _union_terms(kept: NDArray[np.bool_], block: int) -> int:
    return sum(int(kept[start : start + block].any(axis=0).sum()) for start in range(0, len(kept), block))


def _dense_rows(program: Program, weight: NDArray[np.float32], bias: NDArray[np.float32], source: str, target: str, relu: bool) -> None:
    out, terms = weight.shape
    full = out // DENSE_BLOCK * DENSE_BLOCK
    for first, end, block in ((0, full, DENSE_BLOCK), (full, out, round_up(out - full, UNIT))):
        if end == first:
            continue
        name = program.next_name()
        program.use("rows")
        padded, lanes = _padded(weight[first:end], bias[first:end], block)
        program.floats(f"{name}_weight", np.ascontiguousarray(padded.reshape(-1, block, terms).transpose(0, 2, 1)))
        program.floats(f"{name}_bias", lanes)
        at = f"{target} + {first}" if first else target
        program.do(f"vs_rows({source}, {terms}, {block}, {name}_weight, {name}_bias, {end - first}, {at}, {int(relu)});")


def _listed_rows(
    program: Program, weight: NDArray[np.float32], bias: NDArray[np.float32], block: int, source: str, target: str, relu: bool
) -> None:
    name = program.next_name()
    program.use("listed_rows")
    padded, lanes = _padded(weight, bias, block)
    columns = [np.flatnonzero(padded[start : start + block].any(axis=0)) for start in range(0, len(padded), block)]
    values = [padded[i * block : (i + 1) * block, kept].T.reshape(-1) for i, kept in enumerate(columns)]
    program.floats(f"{name}_weight", np.concatenate(values))
    program.floats(f"{name}_bias", lanes)
    program.indexes(f"{name}_index", np.concatenate(columns))
    program.indexes(f"{name}_start", np.cumsum([0, *(len(kept) for kept in columns)]), "uint32_t")
    program.do(
        f"vs_listed_rows({source}, {name}_index, {name}_start, {block}, {name}_weight, {name}_bias, {len(weight)}, {target}, {int(relu)});"
    )


def _sparse_rows(program: Program, weight: NDArray[np.float32], bias: NDArray[np.float32], source: str, target: str, relu: bool) -> None:
    out = len(weight)
    name = program.next_name()
    program.use("sparse_rows")
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
    lanes = np.zeros(round_up(out, SLICE), np.float32)
    lanes[:out] = bias[order]
    program.floats(f"{name}_weight", np.concatenate(values))
    program.indexes(f"{name}_index", np.concatenate(indexes))
    program.indexes(f"{name}_start", np.array(starts, dtype=np.int64), "uint32_t")
    program.indexes(f"{name}_row", order.astype(np.int64))
    program.floats(f"{name}_bias", lanes)
    program.do(
        f"vs_sparse_rows({source}, {name}_index, {name}_start, {name}_weight, {name}_bias, {name}_row, {out}, {target}, {int(relu)});"
    )


def _padded(weight: NDArray[np.float32], bias: NDArray[np.float32], block: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns weights and biases with rows of zeros up to a multiple of `block`."""
    rows = round_up(len(weight), block)
    padded, lanes = np.zeros((rows, weight.shape[1]), np.float32), np.zeros(rows, np.float32)
    padded[: len(weight)], lanes[: len(bias)] = weight, bias
    return padded, lanes
