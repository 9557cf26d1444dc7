"""C of the layers of a backward pass: coefficients of a layer's outputs to those of its inputs, by the tables that the inference reads.

A coefficient is the sum over outputs in their order (of convolutions: blocks of four with all weights, then the lists), whatever the
tables are, so that no choice of kernels changes a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from vsparse.graph.ir import AveragePool, Conv, Gemm, Graph
from vsparse.stages.export.c_live.backward_plan import CoefficientGrid, grid_of
from vsparse.stages.export.c_source.geometry import WIDEST, round_up
from vsparse.stages.export.c_source.layers import FOUR, ConvKernels, GemmKernels, LayerKernels, blocks_of, kept_of, singles_of
from vsparse.stages.export.c_source.literals import float_literal
from vsparse.stages.export.c_source.program import Program

VS_PART = "VS_PART"


class BackwardLayers:
    """Adds statements to the program of a text."""

    def __init__(self, program: Program, graph: Graph, kernels: Mapping[str, LayerKernels]) -> None:
        self.program, self.graph, self.kernels = program, graph, kernels

    def bias(self, node: Conv | Gemm, a: str) -> None:
        """Adds the part of a layer's biases."""
        if node.bias is None:
            return
        name, kernels = self.program.tables.table_of(node.name), self.kernels[node.name]
        channels, positions = node.shape[0], prod(node.shape[1:])
        table = f"{name}_bias"
        if isinstance(kernels, GemmKernels) and kernels.form == "sparse":  # the inference's are in the order of its slices
            table = f"{name}_plain"
            self.program.tables.floats(table, self.graph.params[node.bias])
        if positions == 1:
            self.program.do(f"{VS_PART}(vs_product({a}, {table}, {channels}));")
        else:
            self.program.do(f"{VS_PART}(vs_biases({a}, {table}, {channels}, {positions}));")

    def back(self, node: Conv | Gemm, a: str, to: str, first: bool) -> None:
        """Adds a layer; `first`: only the rows `label` and `other` have coefficients."""
        if isinstance(node, Conv):
            self._conv(node, a, to)
        else:
            self._gemm(node, a, to, first)

    def average(self, node: AveragePool, a: str, to: str) -> None:
        """Adds an average."""
        _, rows, columns = self.graph.shape_of(node.inputs[0])
        numbers = (*node.shape, *node.kernel, *node.stride, rows, columns)
        share = float_literal(float(np.float32(1) / np.float32(prod(node.kernel))))
        self.program.do(f"vs_average_back({a}, {', '.join(map(str, numbers))}, {share}, {to});")

    def _gemm(self, node: Gemm, a: str, to: str, first: bool) -> None:
        weight, program = self.graph.params[node.weight], self.program
        (out, terms), name, kernels = weight.shape, program.tables.table_of(node.name), self.kernels[node.name]
        assert isinstance(kernels, GemmKernels)
        program.do(f"memset({to}, 0, {terms} * sizeof(float));")
        if kernels.form == "sparse":
            order = np.argsort(-np.count_nonzero(weight, axis=1), kind="stable")
            program.tables.indexes(f"{name}_place", np.argsort(order).astype(np.int64))
            program.do(f"vs_lists_back({a}, {name}_index, {name}_start, {name}_weight, {name}_place, {out}, {to});")
            return
        block = kernels.block
        full, rest = divmod(out, block)
        listed = kernels.form == "listed"
        before = sum(int(kept.sum()) for kept in blocks_of(weight, block)[:full]) if listed else full * terms
        groups = [(0, full, block), (full, full + 1 if rest else full, rest)]
        if first:
            program.do("for (int e = 0; e < 2; e++) {", "    const int o = (e == 0) == (label < other) ? label : other;")
        for begin, end, width in groups:
            if begin == end:
                continue
            lane, count = ("o % " + str(block), "1") if first else ("0", str(width))
            loop = (
                f"if (o >= {begin * block} && o < {begin * block + (end - begin) * width}) {{"
                if first
                else f"for (int b = {begin}; b < {end}; b++) {{"
            )
            at = f"{a} + o" if first else f"{a} + b * {block}"
            lines = [f"const int b = o / {block};"] if first else []
            if listed:
                lines += [f"const uint32_t from = {name}_start[b];", f"const int terms = (int)({name}_start[b + 1] - from);"]
                table = (
                    f"{name}_weight + {before * block}L + {width}L * (long)(from - {before}u)"
                    if begin
                    else f"{name}_weight + {width}L * (long)from"
                )
                index, count_terms = f"{name}_index + from", "terms"
                lines.append("if (terms > 0)")
            else:
                table, index, count_terms = f"{name}_weight + {block * terms}L * b", "0", str(terms)
            table = table if lane == "0" else f"{table} + {lane}"
            lines.append(f"{'    ' if listed else ''}vs_rows_back({at}, {table}, {count_terms}, {count}, {width}, {index}, {to});")
            program.do(*[f"    {line}" if first else line for line in (loop, *[f"    {one}" for one in lines], "}")])
        if first:
            program.do("}")

    def _conv(self, node: Conv, a: str, to: str) -> None:
        program, weight, grid = self.program, self.graph.params[node.weight], grid_of(self.graph, node)
        name, kernels = program.tables.table_of(node.name), self.kernels[node.name]
        assert isinstance(kernels, ConvKernels)
        out, channels, height, width = weight.shape[0], weight.shape[1], *node.shape[1:]
        terms, per_group, fours, block = weight[0].size, out // node.groups, kernels.fours, kernels.block
        program.tables.share(f"{name}_blocks", f"{name}_weight", f"{name}_start", f"{name}_channel")
        one = height * width == 1
        program.scratch("grid", grid.size + WIDEST)
        program.do(f"memset(grid, 0, {grid.size + WIDEST} * sizeof(float));")
        read, step = a, 1
        if not one:
            read, step = "wide", self._wide(node, grid, a)
        single = singles_of(self.graph, node)
        into = "grid" if node.groups == 1 else f"grid + {{}} * {channels * grid.step}L"
        in_order = bool((grid.offsets == np.arange(terms)).all())
        if fours and not (one and in_order and node.groups == 1):
            program.tables.indexes(f"{name}_grid", grid.offsets)
        if fours and one and node.groups == 1:
            index = "0" if in_order else f"{name}_grid"
            program.do(
                f"for (int b = 0; b < {fours * FOUR // block}; b++)",
                f"    vs_rows_back({read} + b * {block}, {name}_blocks + {block * terms}L * b, {terms}, {block}, {block}, {index}, grid);",
            )
        elif fours:
            o = "4 * q" if node.groups == 1 else f"(q / {fours} * {per_group} + q % {fours} * 4)"
            table = (
                f"{name}_blocks + {FOUR * terms}L * q"
                if block == FOUR
                else f"{name}_blocks + q / {block // 4} * {block * terms}L + q % {block // 4} * 4"
            )
            program.do(
                f"for (int q = 0; q < {fours * node.groups}; q++)",
                f"    vs_four_back({read} + {o} * {step}, {step}, {table}, {block}, {channels}, {terms // channels}, {name}_grid, "
                f"{grid.run}, {into.format(f'(q / {fours})')});",
            )
        if len(single):
            kept = kept_of(self.graph, node)
            program.tables.indexes(f"{name}_back", np.tile(grid.offsets, (len(single), 1))[kept])
            o = f"(int){name}_channel[i]" if len(single) < out else "i"
            program.do(
                f"for (int i = 0; i < {len(single)}; i++) {{",
                f"    const int o = {o};",
                f"    const uint32_t from = {name}_start[i];",
                f"    vs_list_back({read} + o * {step}, {name}_weight + from, (int)({name}_start[i + 1] - from), {name}_back + from, "
                f"{grid.run}, {into.format(f'(o / {per_group})')});",
                "}",
            )
        shape = self.graph.shape_of(node.inputs[0])
        numbers = (*shape, *node.pads[:2], *node.stride, grid.rows, grid.pitch)
        program.do(f"vs_from_grid(grid, {', '.join(map(str, numbers))}, {to});")

    def _wide(self, node: Conv, grid: CoefficientGrid, a: str) -> int:
        """Adds the copy of coefficients whose rows are as long as the grid's; returns the floats of a channel."""
        channels, height, width = node.shape
        step = round_up(height * grid.pitch, WIDEST)
        self.program.scratch("wide", channels * step)
        self.program.do(f"vs_widen({a}, {channels}, {height}, {width}, {grid.pitch}, {step}, wide);")
        return step
