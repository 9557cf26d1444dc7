"""C for convolutions and fully connected layers: tables of weights without the pruned ones, and the calls that sum over them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Conv, Gemm, Graph
from vsparse.stages.export.c_source.geometry import WIDEST, Planes, round_up
from vsparse.stages.export.c_source.program import Program

# Below these fractions of non-zero weights lists of indexes are faster than loops over all weights (benchmarks/c).
SPARSE_CONV = 0.75
SPARSE_GEMM = 0.15
BLOCK = 64
SLICE = 8


def emit_conv(program: Program, graph: Graph, node: Conv, layout: Planes, source: str, target: str, relu: bool) -> None:
    """Adds a convolution: the copy of its input where one is needed, sums of four or single channels, and the store of each."""
    weight, bias = graph.params[node.weight], _bias(graph, node)
    out, channels = weight.shape[:2]
    shape = graph.shape_of(node.inputs[0])
    name = program.next_name()
    if not layout.direct:
        program.use("planes")
        top, left = node.pads[:2]
        for i, (a, b) in enumerate(layout.phases):
            program.do(
                f"vs_planes({source}, {shape[0]}, {shape[1]}, {shape[2]}, {a - top}, {b - left}, {node.stride[0]}, {node.stride[1]}, "
                f"{layout.rows}, {layout.columns}, {layout.step}, planes + {i * layout.rows * layout.columns});"
            )
        program.scratch("planes", layout.extent)
        source = "planes"
    program.use("sum_planes", "store_planes")
    pitch = round_up(layout.positions, WIDEST)
    per_group = out // node.groups
    flat = weight.reshape(out, -1)
    terms = flat.shape[1]
    fours = per_group // 4 if np.count_nonzero(weight) >= SPARSE_CONV * weight.size else 0
    program.scratch("sums", (4 if fours else 1) * pitch)
    program.floats(f"{name}_bias", bias)
    base = f"{source} + (long){channels * layout.step} * " if node.groups > 1 else source
    size = node.shape[1] * node.shape[2]
    tail = f"{node.shape[1]}, {node.shape[2]}, {layout.columns}, {int(relu)}, {target} + (long)o * {size});"
    if fours:
        blocks = np.concatenate([flat[g * per_group :][: fours * 4].reshape(fours, 4, terms) for g in range(node.groups)])
        program.floats(f"{name}_weight4", np.ascontiguousarray(blocks.transpose(0, 2, 1)))
        program.indexes(f"{name}_offset4", layout.offsets)
        group = f"{base}(i / {fours})" if node.groups > 1 else base
        program.do(
            f"for (int i = 0; i < {len(blocks)}; i++) {{",
            f"    const int o = i / {fours} * {per_group} + i % {fours} * 4;",
            f"    vs_sum4({group}, {name}_offset4, {name}_weight4 + (long)i * {4 * terms}, {terms}, {name}_bias + o, sums, "
            f"{layout.positions}, {pitch});",
            f"    vs_store_planes(sums, {pitch}, 4, {tail}",
            "}",
        )
    single = np.array([o for o in range(out) if o % per_group >= fours * 4], dtype=np.int64)
    if len(single):
        kept = flat[single] != 0
        program.floats(f"{name}_weight", flat[single][kept])
        program.indexes(f"{name}_offset", np.broadcast_to(layout.offsets, kept.shape)[kept])
        program.indexes(f"{name}_start", np.concatenate([[0], np.cumsum(kept.sum(axis=1))]), "uint32_t")
        program.indexes(f"{name}_channel", single)
        group = f"{base}(o / {per_group})" if node.groups > 1 else base
        program.do(
            f"for (int i = 0; i < {len(single)}; i++) {{",
            f"    const int o = (int){name}_channel[i];",
            f"    const uint32_t from = {name}_start[i];",
            f"    vs_sum1({group}, {name}_offset + from, {name}_weight + from, (int)({name}_start[i + 1] - from), {name}_bias + o, sums, "
            f"{layout.positions});",
            f"    vs_store_planes(sums, {pitch}, 1, {tail}",
            "}",
        )


def emit_gemm(program: Program, graph: Graph, node: Gemm, source: str, target: str, relu: bool) -> None:
    """Adds a fully connected layer: blocks of 64 rows with all weights, or of eight with the non-zero ones."""
    weight, bias = graph.params[node.weight], _bias(graph, node)
    if np.count_nonzero(weight) >= SPARSE_GEMM * weight.size:
        _dense_rows(program, weight, bias, source, target, relu)
    else:
        _sparse_rows(program, weight, bias, source, target, relu)


def _dense_rows(program: Program, weight: NDArray[np.float32], bias: NDArray[np.float32], source: str, target: str, relu: bool) -> None:
    out, terms = weight.shape
    name = program.next_name()
    program.use("dense_rows")
    program.scratch("sums", BLOCK)
    width = round_up(out, WIDEST)
    padded = np.zeros((width, terms), np.float32)
    padded[:out] = weight
    blocks = [padded[start : start + BLOCK].T for start in range(0, width, BLOCK)]
    program.floats(f"{name}_weight", np.concatenate([np.ascontiguousarray(block).reshape(-1) for block in blocks]))
    program.floats(f"{name}_bias", np.concatenate([bias, np.zeros(width - out, np.float32)]))
    full = width // BLOCK
    store = f"{target}[o + i] = {_after('sums[i]', relu)};"
    if full:
        last = min(BLOCK, out - (full - 1) * BLOCK)
        count = f"(o == {(full - 1) * BLOCK} ? {last} : {BLOCK})" if last < BLOCK else str(BLOCK)
        program.do(
            f"for (int o = 0; o < {full * BLOCK}; o += {BLOCK}) {{",
            f"    vs_dense_rows({source}, {name}_weight + (long)o * {terms}, {terms}, {BLOCK}, {name}_bias + o, sums);",
            f"    for (int i = 0; i < {count}; i++)",
            f"        {store}",
            "}",
        )
    if width % BLOCK:
        start = full * BLOCK
        program.do(
            "{",
            f"    const int o = {start};",
            f"    vs_dense_rows({source}, {name}_weight + (long)o * {terms}, {terms}, {width - start}, {name}_bias + o, sums);",
            f"    for (int i = 0; i < {out - start}; i++)",
            f"        {store}",
            "}",
        )


def _sparse_rows(program: Program, weight: NDArray[np.float32], bias: NDArray[np.float32], source: str, target: str, relu: bool) -> None:
    out = len(weight)
    name = program.next_name()
    program.use("sparse_rows")
    program.scratch("sums", SLICE)
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
        f"for (int o = 0; o < {out}; o += {SLICE}) {{",
        f"    const uint32_t from = {name}_start[o / {SLICE}];",
        f"    vs_sparse_rows({source}, {name}_index + {SLICE} * (long)from, {name}_weight + {SLICE} * (long)from, "
        f"(int)({name}_start[o / {SLICE} + 1] - from), {name}_bias + o, sums);",
        f"    for (int i = 0; i < {SLICE} && o + i < {out}; i++)",
        f"        {target}[{name}_row[o + i]] = {_after('sums[i]', relu)};",
        "}",
    )


def _after(value: str, relu: bool) -> str:
    return f"{value} < 0.0f ? 0.0f : {value}" if relu else value


def _bias(graph: Graph, node: Conv | Gemm) -> NDArray[np.float32]:
    return np.zeros(node.shape[0], np.float32) if node.bias is None else graph.params[node.bias]
