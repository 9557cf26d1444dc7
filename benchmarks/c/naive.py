"""The network as naive loops in C, the yardstick on microcontrollers: one for each index, clipped to the map, weights as in the file."""

from __future__ import annotations

from math import prod

import numpy as np

from vsparse.graph import Conv, Gemm, Graph, Relu, Reshape
from vsparse.stages.export.c_source.literals import float_literals, table


def naive(graph: Graph) -> str:
    """Returns C with `void naive(const float *input, float *logits)`, for chains of convolutions, fully connected layers and ReLUs."""
    tables, statements, sizes = [], [], [1, 1]
    source, turn = "input", 0
    for node in graph.nodes:
        if isinstance(node, Reshape):
            continue
        if isinstance(node, Relu):
            statements.append(f"    for (int i = 0; i < {node.size}; i++)\n        {source}[i] = {source}[i] < 0.0f ? 0.0f : {source}[i];")
            continue
        assert isinstance(node, Conv | Gemm)
        weight = graph.params[node.weight]
        bias = np.zeros(len(weight), np.float32) if node.bias is None else graph.params[node.bias]
        w, b, target = f"w{len(tables)}", f"b{len(tables)}", f"a{turn}"
        tables += [table("float", f"{w}[{weight.size}]", float_literals(weight)), table("float", f"{b}[{bias.size}]", float_literals(bias))]
        sizes[turn] = max(sizes[turn], node.size)
        if isinstance(node, Gemm):
            terms = weight.shape[1]
            statements.append(
                f"""    for (int o = 0; o < {len(weight)}; o++) {{
        float sum = {b}[o];
        for (int k = 0; k < {terms}; k++)
            sum += {w}[o * {terms} + k] * {source}[k];
        {target}[o] = sum;
    }}"""
            )
        else:
            assert node.groups == 1
            assert node.dilation == (1, 1)
            channels, height, width = graph.shape_of(node.inputs[0])
            _, rows, columns = node.shape
            kh, kw = weight.shape[2:]
            statements.append(
                f"""    for (int o = 0; o < {len(weight)}; o++)
        for (int y = 0; y < {rows}; y++)
            for (int x = 0; x < {columns}; x++) {{
                float sum = {b}[o];
                {_range("i", "y", 0, node, kh, height)}
                {_range("j", "x", 1, node, kw, width)}
                for (int c = 0; c < {channels}; c++)
                    for (int i = i0; i < i1; i++)
                        for (int j = j0; j < j1; j++)
                            sum += {w}[((o * {channels} + c) * {kh} + i) * {kw} + j]
                                * {source}[(c * {height} + y * {node.stride[0]} - {node.pads[0]} + i) * {width}
                                           + x * {node.stride[1]} - {node.pads[1]} + j];
                {target}[(o * {rows} + y) * {columns} + x] = sum;
            }}"""
            )
        source, turn = target, 1 - turn
    arrays = [f"static float a{i}[{size}];" for i, size in enumerate(sizes)]
    end = f"    for (int i = 0; i < {prod(graph.shape_of(graph.output))}; i++)\n        logits[i] = {source}[i];"
    return "\n".join([*tables, *arrays, "void naive(const float *input, float *logits)", "{", *statements, end, "}", ""])


def _range(index: str, position: str, axis: int, node: Conv, taps: int, size: int) -> str:
    """Returns the weights that meet the map at a position: what is left of padding is not multiplied."""
    start = f"{position} * {node.stride[axis]} - {node.pads[axis]}"
    return f"const int {index}0 = {start} < 0 ? -({start}) : 0, {index}1 = {start} + {taps} > {size} ? {size} - ({start}) : {taps};"
