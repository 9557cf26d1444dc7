"""Convolutions without vectors: a tile of output channels and positions in registers, each weight and each input loaded once for it.

Every sum is a variable of its own and every term a statement, so that it does not take -O3 to keep them in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Conv, Graph
from vsparse.stages.export.c_source.layers import ConvKernels, kept_of, singles_of
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program

# Floats in registers at one time: a Cortex-M4F has 32 of single precision, and some are left to the compiler.
REGISTERS = 27
# What a term costs beside its loads and arithmetic: its position, and the loop.
OVERHEAD = 5
# The furthest float that a load reaches from its pointer (VLDR: 1020 bytes); beyond, an address is computed.
REACH = 255


@dataclass(frozen=True)
class Tile:
    """`channels` output channels at `rows` × `columns` positions; `whole`: a row of the filter is unrolled, its weights in registers."""

    channels: int
    rows: int
    columns: int
    whole: bool

    def registers(self, width: int) -> int:
        """Returns the floats alive at one time: sums, weights, an input and a product."""
        return self.channels * (self.rows * self.columns + (width if self.whole else 1)) + 2

    def cost(self, node: Conv, width: int) -> float:
        """Returns instructions of a row of `width` terms at all positions of a map, for each output channel."""
        stride, dilation = node.stride[1], node.dilation[1]
        inputs = len({p * stride + j * dilation for p in range(self.columns) for j in range(width)}) if self.whole else self.columns * width
        tiles = -(-node.shape[1] // self.rows) * -(-node.shape[2] // self.columns)
        work = width * self.channels * (2 * self.rows * self.columns + 1) + self.rows * inputs
        return tiles * (work + OVERHEAD * (1 if self.whole else width)) / self.channels


def choose_tile(node: Conv, channels: tuple[int, ...], pitch: int, width: int, whole: tuple[bool, ...]) -> Tile:
    """Returns the tile that takes the fewest instructions for a filter whose rows have `width` weights.

    It has one of the numbers of channels, and unrolls rows or does not, as `whole` lists. Tiles that do not divide the map overlap, and
    then compute some positions twice. `pitch` is the input's floats from row to row.
    """
    height, columns = node.shape[1:]
    tiles = [
        Tile(count, i, j, one)
        for one in whole
        for count in channels
        for i in range(1, min(height, 8) + 1)
        for j in range(1, min(columns, 24) + 1)
    ]
    fits = [tile for tile in tiles if tile.registers(width) <= REGISTERS and _furthest(node, tile, pitch, width) <= REACH]
    return min(fits or [Tile(channels[-1], 1, 1, False)], key=lambda tile: (tile.cost(node, width), tile.registers(width)))


def _furthest(node: Conv, tile: Tile, pitch: int, width: int) -> int:
    return (tile.rows - 1) * node.stride[0] * pitch + (tile.columns - 1) * node.stride[1] + (width - 1) * node.dilation[1] * tile.whole


def emit_conv(program: Program, graph: Graph, node: Conv, kernels: ConvKernels, source: Place, target: Place, relu: bool) -> None:
    """Adds a convolution whose padding lies in the margins of `source`."""
    weight = graph.params[node.weight]
    name, tables = program.tables.table_of(node.name), program.tables
    out, per_input = weight.shape[:2]
    per_group = out // node.groups
    step, pitch, _ = source.steps
    # The input of output (0, 0) and weight (0, 0), where the margin may be wider than this convolution needs.
    first = source.origin - node.pads[0] * pitch - node.pads[1]
    fours, block, single = kernels.fours, kernels.block, singles_of(graph, node)
    terms = weight[0].size
    group = f" + {{}} * {per_input * step}" if node.groups > 1 else ""
    read = f"{source.array} + {first}" if first else source.array
    write = f"{target.array} + {target.origin} + o * {target.steps[0]}" if target.origin else f"{target.array} + o * {target.steps[0]}"
    if fours:
        tile = choose_tile(node, (4, 2, 1), pitch, weight.shape[3], (True, False))
        own = program.function(
            "conv",
            "const float *in, const float *weight, const float *bias, float *out",
            _dense(program, node, weight, block, source, target, tile, relu),
        )
        passes = 4 // tile.channels
        blocks = fours * node.groups
        place = f"i / {fours} * {per_group} + i % {fours} * 4" if node.groups > 1 else "i * 4"
        many = block // 4
        table = f"{name}_blocks + i * {4 * terms}" if many == 1 else f"{name}_blocks + i / {many} * {block * terms} + i % {many} * 4"
        program.do(f"for (int i = 0; i < {blocks}; i++) {{")
        if passes == 1:
            program.do(
                f"    const int o = {place};",
                f"    {own}({read}{group.format(f'(i / {fours})')}, {table}, {program.start(name)} + o, {write});",
            )
        else:
            program.do(
                f"    for (int r = 0; r < 4; r += {tile.channels}) {{",
                f"        const int o = {place} + r;",
                f"        {own}({read}{group.format(f'(i / {fours})')}, {table} + r, {program.start(name)} + o, {write});",
                "    }",
            )
        program.do("}")
    if len(single):
        kept = kept_of(graph, node)
        kind = tables.integers(f"{name}_delta", _differences(kept, _offsets(weight.shape, node, source)), "scalar")
        tile = choose_tile(node, (1,), pitch, 1, (False,))
        own = program.function(
            "list",
            f"const float *in, const {kind} *delta, const float *weight, uint32_t terms, float bias, float *out",
            _list(program, node, source, target, tile, relu, not kind.startswith("u")),
        )
        channel = f"(int){name}_channel[i]" if len(single) < out else "i"
        program.do(
            f"for (int i = 0; i < {len(single)}; i++) {{",
            f"    const int o = {channel};",
            f"    const uint32_t from = {name}_start[i];",
            f"    {own}({read}{group.format(f'(o / {per_group})')}, {name}_delta + from, {name}_weight + from, {name}_start[i + 1] - from, "
            f"{program.start(name)}[o], {write});",
            "}",
        )


def _offsets(shape: tuple[int, ...], node: Conv, source: Place) -> NDArray[np.int64]:
    """Returns how far behind the first input the one of each weight of a filter [in/groups, kh, kw] lies, flat."""
    step, pitch, _ = source.steps
    c, i, j = np.indices(shape[1:])
    offsets: NDArray[np.int64] = (c * step + i * node.dilation[0] * pitch + j * node.dilation[1]).reshape(-1)
    return offsets


def _differences(kept: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns for each weight of each list how far its input lies behind that of the weight before it, the first behind the list's."""
    rows = [np.diff(offsets[row], prepend=0) for row in kept]
    return np.concatenate(rows) if rows else np.zeros(0, np.int64)


def _tiles(node: Conv, tile: Tile) -> list[str]:
    """Returns the loops over tiles; the last of a row or column begins where it ends with the map."""
    lines = []
    for index, size, each in (("row", node.shape[1], tile.rows), ("column", node.shape[2], tile.columns)):
        if size == each:
            continue
        if size % each == 0:
            lines.append(f"for (int {index} = 0; {index} < {size}; {index} += {each})")
        else:
            lines += [
                f"for (int {index}0 = 0; {index}0 < {size}; {index}0 += {each}) {{",
                f"    const int {index} = {index}0 < {size - each} ? {index}0 : {size - each};",
            ]
    return lines


def _around(loops: list[str], body: list[str]) -> list[str]:
    """Returns a body inside loops, each line of which opens one or is the first statement of the one before."""
    lines, depth, braces = [], 0, []
    for line in loops:
        if line.startswith("    "):
            lines.append("    " * depth + line.strip())
            continue
        own = line if line.endswith("{") else f"{line} {{"
        lines.append("    " * depth + own)
        braces.append(depth)
        depth += 1
    lines += ["    " * depth + line for line in body]
    return lines + ["    " * at + "}" for at in reversed(braces)]


def _start(node: Conv, tile: Tile, steps: tuple[int, ...], stride: tuple[int, int]) -> str:
    """Returns the expression of where a tile begins."""
    terms = [
        f"{index} * {step * each}" if step * each != 1 else index
        for index, size, part, step, each in (
            ("row", node.shape[1], tile.rows, steps[0], stride[0]),
            ("column", node.shape[2], tile.columns, steps[1], stride[1]),
        )
        if size != part
    ]
    return " + ".join(terms)


def _term(node: Conv, tile: Tile, pitch: int, at: str) -> list[str]:
    """Returns the statements of one term: each input of the tile is loaded once, and multiplied with the weight of each channel."""
    lines = []
    for i in range(tile.rows):
        for j in range(tile.columns):
            p = i * tile.columns + j
            offset = i * node.stride[0] * pitch + j * node.stride[1]
            where = " + ".join(part for part in (at, str(offset) if offset else "") if part) or "0"
            sums = " ".join(f"s{r}_{p} += w{r} * v{p};" for r in range(tile.channels))
            lines += [f"const float v{p} = x[{where}];", f"VS_UNLESS_ZERO(v{p}) {{ {sums} }}"]
    return lines


def _stores(tile: Tile, target: Place, relu: bool) -> list[str]:
    step, pitch, _ = target.steps
    lines = []
    for r in range(tile.channels):
        for i in range(tile.rows):
            for j in range(tile.columns):
                s = f"s{r}_{i * tile.columns + j}"
                lines.append(f"to[{r * step + i * pitch + j}] = {f'{s} < 0.0f ? 0.0f : {s}' if relu else s};")
    return lines


def _dense(
    program: Program, node: Conv, weight: NDArray[np.float32], block: int, source: Place, target: Place, tile: Tile, relu: bool
) -> list[str]:
    """Returns the text of all positions of a tile's channels, whose weights lie in a table [terms][block]."""
    _, per_input, kh, kw = weight.shape
    step, pitch, _ = source.steps
    dy, dx = node.dilation[0] * pitch, node.dilation[1]
    counters = [("c", per_input, step), ("i", kh, dy), ("j", 1 if tile.whole else kw, dx)]
    body = _row(program, node, tile, block, pitch, kw, dx) if tile.whole else _single(program, node, tile, pitch)
    inner = _moving([one for one in counters if one[1] > 1], [*body, f"k += {block * kw if tile.whole else block};"])
    begin, end = _start(node, tile, (pitch, 1), node.stride), _start(node, tile, target.steps[1:], (1, 1))
    text = [
        f"const float *const x = in{f' + {begin}' if begin else ''};",
        "int at = 0;",
        "int k = 0;",
        *["float " + ", ".join(f"s{r}_{p} = bias[{r}]" for p in range(tile.rows * tile.columns)) + ";" for r in range(tile.channels)],
        f"float *const to = out{f' + {end}' if end else ''};",
        *inner,
        *_stores(tile, target, relu),
    ]
    return _around(_tiles(node, tile), text)


def _moving(counters: list[tuple[str, int, int]], body: list[str]) -> list[str]:
    """Returns nested loops (counter, count, step); behind each body the index `at` moves on to the next term of that loop."""
    lines, done = body, 0
    for name, count, step in reversed(counters):
        lines = [
            f"for (int {name} = 0; {name} < {count}; {name}++) {{",
            *[f"    {line}" for line in lines],
            f"    at += {step - done};",
            "}",
        ]
        done = step * count
    return lines


def _single(program: Program, node: Conv, tile: Tile, pitch: int) -> list[str]:
    """Returns the statements of one term for weights at `k`."""
    weights = [program.weight(f"weight[{f'k + {r}' if r else 'k'}]") for r in range(tile.channels)]
    return [*[f"const float w{r} = {value};" for r, value in enumerate(weights)], *_term(node, tile, pitch, "at")]


def _row(program: Program, node: Conv, tile: Tile, block: int, pitch: int, kw: int, dx: int) -> list[str]:
    """Returns the statements of the terms of one row of a filter, whose positions share inputs: each is loaded once.

    Inputs come from left to right, so that each position meets its terms from left to right too.
    """
    lines = [
        f"const float w{j}{r} = {program.weight(f'weight[{at}]')};"
        for j in range(kw)
        for r in range(tile.channels)
        for at in (f"k + {block * j + r}" if j or r else "k",)
    ]
    for i in range(tile.rows):
        for q in range((tile.columns - 1) * node.stride[1] + (kw - 1) * dx + 1):
            users = [(j, p) for p in range(tile.columns) for j in range(kw) if p * node.stride[1] + j * dx == q]
            if users:
                offset = i * node.stride[0] * pitch + q
                sums = [f"s{r}_{i * tile.columns + p} += w{j}{r} * v{i}_{q};" for j, p in users for r in range(tile.channels)]
                lines += [
                    f"const float v{i}_{q} = x[{f'at + {offset}' if offset else 'at'}];",
                    f"VS_UNLESS_ZERO(v{i}_{q}) {{ {' '.join(sums)} }}",
                ]
    return lines


def _list(program: Program, node: Conv, source: Place, target: Place, tile: Tile, relu: bool, signed: bool) -> list[str]:
    """Returns the text of all positions of one channel, a list of weights and of how far each one's input lies behind the last."""
    pitch = source.steps[1]
    begin, end = _start(node, tile, (pitch, 1), node.stride), _start(node, tile, target.steps[1:], (1, 1))
    text = [
        f"const float *const x = in{f' + {begin}' if begin else ''};",
        f"{'int32_t' if signed else 'uint32_t'} at = 0;",
        "float " + ", ".join(f"s0_{p} = bias" for p in range(tile.rows * tile.columns)) + ";",
        f"float *const to = out{f' + {end}' if end else ''};",
        "for (uint32_t k = 0; k < terms; k++) {",
        f"    const float w0 = {program.weight('weight[k]')};",
        "    at += delta[k];",
        *[f"    {line}" for line in _term(node, tile, pitch, "at")],
        "}",
        *_stores(tile, target, relu),
    ]
    return _around(_tiles(node, tile), text)
