"""The other operators of the int8 C: elementwise ones, pools, moves, and sums on float32; one loop nest each, shapes as constants."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from vsparse.graph.ir import Add, AveragePool, Conv, Gemm, MaxPool
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import Stored, flat_expression, nest
from vsparse.stages.export.c_int8.program import Int8Program, load, offset, steps_at, store
from vsparse.stages.export.c_source.literals import float_literal


def emit_elementwise(program: Int8Program, step: Step, sources: Sequence[Stored], target: Stored) -> None:
    """Adds a residual addition, the rounding of float32 values to a grid, or what a chain alone does.

    The sum of two quantised values on its way to a grid is that of steps, each times the quotient of its scale and the grid's.
    """
    shape = target.place.shape
    loops, at, indent = nest(shape)
    scaled = isinstance(step.head, Add) and step.relu_alone and all(one.grid is not None for one in sources)
    if scaled and step.grid is not None:
        own = np.float32(step.grid.scale)
        factors = [np.float32(one.grid.scale) / own for one in sources if one.grid is not None]
        value = " + ".join(f"{steps_at(one, at)} * {float_literal(float(f))}" for one, f in zip(sources, factors, strict=True))
    else:
        value = " + ".join(load(one, at) for one in sources)
    lines = store(program, step, value, target, at, scaled, watched=any(one.grid is None for one in sources))
    program.do(*_opened(loops), *[f"{indent}{line}" for line in lines], *_closed(indent))


def emit_integer_relu(program: Int8Program, source: Stored, target: Stored) -> None:
    """Adds a ReLU of steps: zero is one of them."""
    loops, at, indent = nest(target.place.shape)
    one = source.place.at(at)
    program.do(*_opened(loops), f"{indent}{target.place.at(at)} = {one} < {source.zero} ? {source.zero} : {one};", *_closed(indent))


def emit_move(program: Int8Program, source: Stored, target: Stored) -> None:
    """Adds a reshaping between places whose elements lie in another order."""
    to, at = flat_expression(target.place, "i"), flat_expression(source.place, "i")
    program.do(f"for (int i = 0; i < {prod(target.place.shape)}; i++)", f"    {to} = {at};")


def emit_max_pool(program: Int8Program, step: Step, source: Stored, target: Stored) -> None:
    """Adds a maximum over windows, clipped to the map; of float32 numbers a NaN is the largest."""
    node = step.head
    assert isinstance(node, MaxPool)
    _, height, width = source.place.shape
    (kh, kw), (sy, sx), (top, left) = node.kernel, node.stride, node.pads[:2]
    ends = [f"y0 + {kh}", f"x0 + {kw}"]
    starts = ["y0", "x0"]
    if any(node.pads):
        starts = ["(y0 < 0 ? 0 : y0)", "(x0 < 0 ? 0 : x0)"]
        ends = [f"(y0 + {kh} < {height} ? y0 + {kh} : {height})", f"(x0 + {kw} < {width} ? x0 + {kw} : {width})"]
    most = "one > most || one != one ? one : most" if source.grid is None else "one > most ? one : most"
    integer = [f"{target.place.at(['c', 'i', 'j'])} = most;"]
    end = integer if source.grid is not None else store(program, step, "most", target, ["c", "i", "j"], watched=True)
    program.do(
        f"for (int i = 0; i < {node.shape[1]}; i++)",
        f"    for (int j = 0; j < {node.shape[2]}; j++)",
        f"        for (int c = 0; c < {node.shape[0]}; c++) {{",
        f"            const int y0 = i * {sy}{offset(-top)}, x0 = j * {sx}{offset(-left)};",
        f"            {source.kind} most = {source.place.at(['c', *starts])};",
        f"            for (int y = {starts[0]}; y < {ends[0]}; y++)",
        f"                for (int x = {starts[1]}; x < {ends[1]}; x++) {{",
        f"                    const {source.kind} one = {source.place.at(['c', 'y', 'x'])};",
        f"                    most = {most};",
        "                }",
        *[f"            {line}" for line in end],
        "        }",
    )


def emit_average_pool(program: Int8Program, step: Step, source: Stored, target: Stored) -> None:
    """Adds a mean over windows: of steps the sum of integers times one factor, of float32 numbers the sum in order and a division."""
    node = step.head
    assert isinstance(node, AveragePool)
    window = prod(node.kernel)
    scaled = source.grid is not None and step.relu_alone
    value, kind, zero = f"sum / vs_divisor({window}.0f)", "float", "0.0f"
    if source.grid is not None:
        factor = np.float32(source.grid.scale) / np.float32(window)
        factor = factor / np.float32(step.grid.scale) if scaled and step.grid is not None else factor
        value, kind, zero = f"(float)(sum{offset(-source.zero * window)}) * {float_literal(float(factor))}", "int32_t", "0"
    at = source.place.at(["c", f"(i * {node.stride[0]} + y)", f"(j * {node.stride[1]} + x)"])
    program.do(
        f"for (int i = 0; i < {node.shape[1]}; i++)",
        f"    for (int j = 0; j < {node.shape[2]}; j++)",
        f"        for (int c = 0; c < {node.shape[0]}; c++) {{",
        f"            {kind} sum = {zero};",
        f"            for (int y = 0; y < {node.kernel[0]}; y++)",
        f"                for (int x = 0; x < {node.kernel[1]}; x++)",
        f"                    sum += {at};",
        *[f"            {line}" for line in store(program, step, value, target, ["c", "i", "j"], scaled, source.grid is None)],
        "        }",
    )


def emit_float_sum(program: Int8Program, step: Step, source: Stored, target: Stored) -> None:
    """Adds a convolution or fully connected layer that reads float32, as the loops of its definition."""
    node = step.head
    assert isinstance(node, Conv | Gemm)
    name, weight = program.table_of(node.name), program.graph.params[node.weight]
    program.constants.floats(f"{name}_weight", weight)
    program.constants.floats(f"{name}_bias", np.zeros(len(weight), np.float32) if node.bias is None else program.graph.params[node.bias])
    if isinstance(node, Gemm):
        program.do(
            f"for (int o = 0; o < {len(weight)}; o++) {{",
            f"    float sum = {name}_bias[o];",
            f"    for (int k = 0; k < {weight.shape[1]}; k++)",
            f"        sum += {name}_weight[o * {weight.shape[1]} + k] * {source.place.at(['k'])};",
            *[f"    {line}" for line in store(program, step, "sum", target, ["o"], watched=True)],
            "}",
        )
        return
    out, channels, kh, kw = weight.shape
    _, height, width = source.place.shape
    group = f"o / {out // node.groups} * {channels} + " if node.groups > 1 else ""
    ranges = [
        f"const int {v}0 = {i} * {node.stride[d]}{offset(-node.pads[d])}, {v}a = {v}0 < 0 ? ({node.dilation[d] - 1} - {v}0) / "
        f"{node.dilation[d]} : 0, {v}b = {v}0 + {(k - 1) * node.dilation[d]} < {size} ? {k} : "
        f"({size + node.dilation[d] - 1} - {v}0) / {node.dilation[d]};"
        for d, (v, i, k, size) in enumerate((("y", "i", kh, height), ("x", "j", kw, width)))
    ]
    at = source.place.at([f"({group}c)", f"(y0 + y * {node.dilation[0]})", f"(x0 + x * {node.dilation[1]})"])
    program.do(
        f"for (int i = 0; i < {node.shape[1]}; i++)",
        f"    for (int j = 0; j < {node.shape[2]}; j++)",
        f"        for (int o = 0; o < {out}; o++) {{",
        *[f"            {line}" for line in ranges],
        f"            float sum = {name}_bias[o];",
        f"            for (int c = 0; c < {channels}; c++)",
        "                for (int y = ya; y < yb; y++)",
        "                    for (int x = xa; x < xb; x++)",
        f"                        sum += {name}_weight[((o * {channels} + c) * {kh} + y) * {kw} + x] * {at};",
        *[f"            {line}" for line in store(program, step, "sum", target, ["o", "i", "j"], watched=True)],
        "        }",
    )


def emit_logits(program: Int8Program, source: Stored) -> None:
    """Adds the copy of the output to the caller's array, in float32 and row-major."""
    shape = source.place.shape
    loops, at, indent = nest(shape)
    target = " + ".join(f"{i} * {prod(shape[d + 1 :])}" if prod(shape[d + 1 :]) > 1 else i for d, i in enumerate(at) if i != "0") or "0"
    program.do(*_opened(loops), f"{indent}logits[{target}] = {load(source, at)};", *_closed(indent))


def _opened(loops: list[str]) -> list[str]:
    return [*loops[:-1], f"{loops[-1]} {{"] if loops else ["{"]


def _closed(indent: str) -> list[str]:
    return [f"{indent[4:]}}}"]
