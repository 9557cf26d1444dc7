"""The text of a network for processors with vectors: convolutions as sums of shifted planes, fully connected layers in blocks of rows."""

from __future__ import annotations

import numpy as np

from vsparse.graph.ir import Conv, Gemm, Graph
from vsparse.stages.export.c_source.geometry import WIDEST, Planes, round_up
from vsparse.stages.export.c_source.layers import BLOCK, fours_of, is_sparse, kept_of, singles_of
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.sparse_rows import emit_sparse_rows


def emit_conv(program: Program, graph: Graph, node: Conv, layout: Planes, source: Place, target: Place, relu: bool) -> None:
    """Adds a convolution: the copy of its input where one is needed, sums of four or single channels, and the store of each."""
    weight = graph.params[node.weight]
    out, channels = weight.shape[:2]
    name, tables = program.tables.table_of(node.name), program.tables
    read = source.array
    if not layout.direct:
        program.use("planes")
        top, left = node.pads[:2]
        shape = source.shape
        for i, (a, b) in enumerate(layout.phases):
            program.do(
                f"vs_planes({read}, {shape[0]}, {shape[1]}, {shape[2]}, {a - top}, {b - left}, {node.stride[0]}, {node.stride[1]}, "
                f"{layout.rows}, {layout.columns}, {layout.step}, planes + {i * layout.rows * layout.columns});"
            )
        program.scratch("planes", layout.extent)
        read = "planes"
    program.use("sum_planes", "store_planes")
    pitch = round_up(layout.positions, WIDEST)
    per_group = out // node.groups
    terms = weight[0].size
    fours, single = fours_of(graph, node), singles_of(graph, node)
    program.scratch("sums", (4 if fours else 1) * pitch)
    base = f"{read} + (long){channels * layout.step} * " if node.groups > 1 else read
    size = node.shape[1] * node.shape[2]
    tail = f"{node.shape[1]}, {node.shape[2]}, {layout.columns}, {int(relu)}, {target.array} + (long)o * {size});"
    if fours:
        tables.indexes(f"{name}_offset4", layout.offsets, "vector")
        group = f"{base}(i / {fours})" if node.groups > 1 else base
        program.do(
            f"for (int i = 0; i < {fours * node.groups}; i++) {{",
            f"    const int o = i / {fours} * {per_group} + i % {fours} * 4;",
            f"    vs_sum4({group}, {name}_offset4, {name}_weight4 + (long)i * {4 * terms}, {terms}, {name}_bias + o, sums, "
            f"{layout.positions}, {pitch});",
            f"    vs_store_planes(sums, {pitch}, 4, {tail}",
            "}",
        )
    if len(single):
        kept = kept_of(graph, node)
        tables.indexes(f"{name}_offset", np.broadcast_to(layout.offsets, kept.shape)[kept], "vector")
        channel = f"(int){name}_channel[i]" if len(single) < out else "i"
        group = f"{base}(o / {per_group})" if node.groups > 1 else base
        program.do(
            f"for (int i = 0; i < {len(single)}; i++) {{",
            f"    const int o = {channel};",
            f"    const uint32_t from = {name}_start[i];",
            f"    vs_sum1({group}, {name}_offset + from, {name}_weight + from, (int)({name}_start[i + 1] - from), {name}_bias + o, sums, "
            f"{layout.positions});",
            f"    vs_store_planes(sums, {pitch}, 1, {tail}",
            "}",
        )


def emit_gemm(program: Program, graph: Graph, node: Gemm, source: Place, target: Place, relu: bool) -> None:
    """Adds a fully connected layer: blocks of 64 rows with all weights, or of eight with the non-zero ones."""
    name = program.tables.table_of(node.name)
    if is_sparse(graph, node):
        emit_sparse_rows(program, name, node.shape[0], source, target, relu)
        return
    out, terms = graph.params[node.weight].shape
    program.use("dense_rows")
    program.scratch("sums", BLOCK)
    store = f"{target.array}[o + i] = {'sums[i] < 0.0f ? 0.0f : sums[i]' if relu else 'sums[i]'};"
    full, rest = divmod(out, BLOCK)
    if full:
        program.do(
            f"for (int o = 0; o < {full * BLOCK}; o += {BLOCK}) {{",
            f"    vs_dense_rows({source.array}, {name}_weight + (long)o * {terms}, {terms}, {BLOCK}, {BLOCK}, {name}_bias + o, sums);",
            f"    for (int i = 0; i < {BLOCK}; i++)",
            f"        {store}",
            "}",
        )
    if rest:
        start = full * BLOCK
        program.do(
            "{",
            f"    const int o = {start};",
            f"    vs_dense_rows({source.array}, {name}_weight + (long)o * {terms}, {terms}, {round_up(rest, WIDEST)}, {rest}, "
            f"{name}_bias + o, sums);",
            f"    for (int i = 0; i < {rest}; i++)",
            f"        {store}",
            "}",
        )
