"""Convolutions and fully connected layers on int8: all weights, in tiles of channels and positions, or lists of the non-zero ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Conv, Gemm
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import Stored, offsets_of
from vsparse.stages.export.c_int8.program import Int8Program, offset, store

# Sums in registers at one time: channels and positions of a dense tile, channels where there is one position, positions of a list.
CHANNELS, POSITIONS, ROWS, LISTED = 3, 2, 5, 8
WORD = 4


@dataclass(frozen=True)
class Layer:
    """One layer: integers of its weights [out, …] and biases, factors [out]; where each weight's input lies, from a group's first on.

    The inputs of a channel are runs of `length` bytes at `steps` (outer, inner), `counts` of them; a weight's is number `inside` of `run`.
    A fully connected layer has one position, and `size` is 1 × 1. Positions lie `apart` (down, across) in the input; `first` is where
    those of position 0 begin.
    """

    weight: NDArray[np.int64]
    bias: NDArray[np.int64]
    factor: NDArray[np.float32]
    offsets: NDArray[np.int64]
    run: NDArray[np.int64]
    inside: NDArray[np.int64]
    counts: tuple[int, int]
    steps: tuple[int, int]
    length: int
    size: tuple[int, int]
    apart: tuple[int, int]
    first: int
    groups: int
    group_step: int
    most: float

    @property
    def padded(self) -> int:
        """The bytes of a run's weights: whole words."""
        return -(-self.length // WORD) * WORD

    @property
    def terms(self) -> int:
        """The bytes of a channel's weights."""
        return self.counts[0] * self.counts[1] * self.padded


def emit_sum(program: Int8Program, step: Step, source: Stored, target: Stored) -> None:
    """Adds a convolution or fully connected layer that reads int8, in the form that takes fewer instructions."""
    node = step.head
    assert isinstance(node, Conv | Gemm)
    layer = layer_of(program, step, node, source)
    name = program.table_of(node.name)
    program.constants.integers("int32_t", f"{name}_bias", layer.bias)
    program.constants.floats(f"{name}_scale", layer.factor)
    lists = lists_of(layer)
    program.listed.append(is_listed(layer, lists))
    write = _list_text if program.listed[-1] else _dense_text
    body = write(program, step, layer, lists, name, replace(target, place=replace(target.place, array="out")))
    program.function(f"{'conv' if isinstance(node, Conv) else 'rows'}", source, target, body)


def layer_of(program: Int8Program, step: Step, node: Conv | Gemm, source: Stored) -> Layer:
    """Returns the integers of a layer, and where they lie."""
    graph, grid = program.graph, source.grid
    assert grid is not None
    stored = graph.integers[node.weight]
    weight = stored.values.astype(np.int64)
    flat = weight.reshape(len(weight), -1)
    bias = np.zeros(len(weight), np.int64) if node.bias is None else graph.integers[node.bias].values.astype(np.int64)
    factor = np.broadcast_to(np.float32(grid.scale) * stored.scale, (len(weight),)).astype(np.float32)
    if step.grid is not None and step.relu_alone:
        factor = factor / np.float32(step.grid.scale)
    reach = np.abs(flat).sum(axis=1) * max(-grid.steps[0], grid.steps[1]) + np.abs(bias)
    most = float((reach * factor.astype(np.float64)).max()) * (1 + 2.0**-20)  # the roundings of T and of its product
    # A stored number is its step and `zero`.
    bias = bias - source.zero * flat.sum(axis=1)
    if isinstance(node, Gemm):
        offsets = offsets_of(source.place)
        return Layer(
            flat, bias, factor, offsets, 0 * offsets, offsets, (1, 1), (0, 0), int(offsets.max()) + 1, (1, 1), (0, 0), 0, 1, 0, most
        )
    _, channels, kh, kw = weight.shape
    _, pitch, each = source.place.steps
    down, across = pitch * node.dilation[0], each * node.dilation[1]
    c, i, j = np.indices(weight.shape[1:])
    joined = node.groups == 1 and node.dilation[1] == 1
    counts, length = ((kh, 1), kw * each) if joined else ((kh, kw), channels)
    first = source.place.origin - node.pads[0] * pitch - node.pads[1] * each
    return Layer(
        flat,
        bias,
        factor,
        (c + i * down + j * across).reshape(-1),
        (i if joined else i * kw + j).reshape(-1),
        (c + j * each if joined else c).reshape(-1),
        counts,
        (down, across),
        length,
        (node.shape[1], node.shape[2]),
        (pitch * node.stride[0], each * node.stride[1]),
        first,
        node.groups,
        channels,
        most,
    )


def is_listed(layer: Layer, lists: Lists) -> bool:
    """Returns whether a layer is computed from lists of its non-zero weights."""
    return _list_cost(layer, lists) < _dense_cost(layer)


def tile_of(layer: Layer) -> tuple[int, int]:
    """Returns how many channels and positions of a row are summed at one time."""
    per_group = len(layer.weight) // layer.groups
    positions = min(POSITIONS, layer.size[1])
    return min(CHANNELS if positions > 1 else ROWS, per_group), positions


def _dense_cost(layer: Layer) -> float:
    """Returns instructions of all sums by a count of loads, extensions and dual products for each word."""
    rows, positions = tile_of(layer)
    words = layer.terms / WORD
    each = 3 * rows + 3 * positions + 2 * rows * positions + 2
    return len(layer.weight) * layer.size[0] * layer.size[1] * (words * each + 6 * layer.counts[0] * layer.counts[1]) / (rows * positions)


def _list_cost(layer: Layer, lists: Lists) -> float:
    positions = positions_of(layer)
    return len(lists.weight) * layer.size[0] * layer.size[1] * (6 + 2 * positions) / positions


def positions_of(layer: Layer) -> int:
    parts = -(-layer.size[1] // LISTED)
    return -(-layer.size[1] // parts)


def _dense_text(program: Int8Program, step: Step, layer: Layer, _: Lists, name: str, target: Stored) -> list[str]:
    runs = layer.counts[0] * layer.counts[1]
    table = np.zeros((len(layer.weight), runs, layer.padded), np.int64)
    table[:, layer.run, layer.inside] = layer.weight
    program.constants.integers("int8_t", f"{name}_weight", table)
    rows, positions = tile_of(layer)
    per_group = len(layer.weight) // layer.groups
    group = f" + g * {layer.group_step}" if layer.groups > 1 else ""
    channel = f"g * {per_group} + o" if layer.groups > 1 else "o"
    body = [
        f"const int8_t *{'begin' if runs > 1 else 'x'} = in{start_of(layer)}{group};",
        f"const int8_t *{'weights' if runs > 1 else 'w'} = {name}_weight + ({channel}) * {layer.terms};",
        "int32_t " + ", ".join(f"s{r}_{p} = {name}_bias[{channel} + {r}]" for r in range(rows) for p in range(positions)) + ";",
        *runs_of(layer, rows, positions),
        *_stores(program, step, name, target, layer, rows, positions, channel),
    ]
    loops = [*steps_over("row", layer.size[0], 1), *steps_over("column", layer.size[1], positions)]
    loops += steps_over("g", layer.groups, 1) if layer.groups > 1 else []
    return around([*loops, *steps_over("o", per_group, rows)], body)


def runs_of(layer: Layer, rows: int, positions: int) -> list[str]:
    """Returns the statements that add all products of a tile: two at a time, sixteen at a time, or one by one."""
    apart, length, terms = layer.apart[1], layer.padded, layer.terms
    tile = [(r, p) for r in range(rows) for p in range(positions)]
    words = length // WORD
    unrolled = words if words <= 4 else next(u for u in (4, 3, 2, 1) if words % u == 0)
    dsp = []
    for u in range(unrolled):
        for p in range(positions):
            dsp += [
                f"const uint32_t x{u}_{p} = vs_word(x{offset(p * apart + WORD * u)}), "
                f"e{u}_{p} = vs_even(x{u}_{p}), d{u}_{p} = vs_odd(x{u}_{p});"
            ]
        for r in range(rows):
            dsp.append(f"const uint32_t w{u}_{r} = vs_word(w{offset(r * terms + WORD * u)}), f{u}_{r} = vs_even(w{u}_{r});")
            dsp += [f"s{r}_{p} = vs_pair(s{r}_{p}, f{u}_{r}, e{u}_{p});" for p in range(positions)]
            dsp.append(f"const uint32_t g{u}_{r} = vs_odd(w{u}_{r});")
            dsp += [f"s{r}_{p} = vs_pair(s{r}_{p}, g{u}_{r}, d{u}_{p});" for p in range(positions)]
    step = WORD * unrolled
    if unrolled == words:
        dsp = ["{", *[f"    {line}" for line in dsp], "}"]
    else:
        dsp = [f"for (int k = 0; k < {length}; k += {step}) {{", *[f"    {line}" for line in dsp], f"    x += {step};"]
        dsp += [f"    w += {step};", "}"]
    mve = [
        f"for (int k = 0; k < {length}; k += 16) {{",
        f"    const mve_pred16_t some = vctp8q((uint32_t)({length} - k));",
        *[f"    const int8x16_t x{p} = vldrbq_z_s8(x + k{offset(p * apart)}, some);" for p in range(positions)],
        *[f"    const int8x16_t w{r} = vldrbq_z_s8(w + k{offset(r * terms)}, some);" for r in range(rows)],
        *[f"    s{r}_{p} = vmladavaq_s8(s{r}_{p}, w{r}, x{p});" for r, p in tile],
        "}",
    ]
    plain = [  # not what fills words up: that may lie behind what was written
        f"for (int k = 0; k < {layer.length}; k++) {{",
        *[f"    const int32_t x{p} = x[k{offset(p * apart)}];" for p in range(positions)],
        *[f"    const int32_t w{r} = w[k{offset(r * terms)}];" for r in range(rows)],
        *[f"    s{r}_{p} += w{r} * x{p};" for r, p in tile],
        "}",
    ]
    lines = ["#if VS_DSP", *dsp, "#elif VS_MVE", *mve, "#else", *plain, "#endif"]
    (outer, inner), (down, across) = layer.counts, layer.steps
    if outer * inner == 1:
        return lines
    at = [f"i * {down}"] * (outer > 1) + [f"j * {across}"] * (inner > 1)
    number = f"i * {inner * length}" if inner == 1 else f"j * {length}" if outer == 1 else f"(i * {inner} + j) * {length}"
    lines = [f"const int8_t *x = begin + {' + '.join(at)};", f"const int8_t *w = weights + {number};", *lines]
    for index, count in (("j", inner), ("i", outer)):
        lines = loop_over(index, count, lines) if count > 1 else lines
    return lines


def loop_over(index: str, count: int | str, lines: list[str]) -> list[str]:
    inner = [line if line.startswith("#") else f"    {line}" for line in lines]
    return [f"for (int {index} = 0; {index} < {count}; {index}++) {{", *inner, "}"]


@dataclass(frozen=True)
class Lists:
    """For each channel how many entries it has; for each entry how far its input lies behind the one before it, and its weight."""

    counts: NDArray[np.int64]
    delta: NDArray[np.int64]
    weight: NDArray[np.int64]
    kind: str


def lists_of(layer: Layer) -> Lists:
    """Returns the non-zero weights in the order of their inputs, in the shorter of two notations: differences in 8 bits or 16.

    A longer way than the notation has is gone in several entries whose weight is 0.
    """
    order = np.argsort(layer.offsets, kind="stable")
    found = []
    for kind, most, width in (("uint8_t", 2**8 - 1, 1), ("uint16_t", 2**16 - 1, 2)):
        counts, deltas, weights = [], [], []
        for row in layer.weight[:, order]:
            (kept,) = np.nonzero(row)
            way = np.diff(layer.offsets[order][kept], prepend=0)
            fillers = np.maximum(way - 1, 0) // most
            ends = np.cumsum(fillers + 1) - 1
            delta, weight = np.full(int((fillers + 1).sum()), most, np.int64), np.zeros(int((fillers + 1).sum()), np.int64)
            delta[ends], weight[ends] = way - fillers * most, row[kept]
            counts.append(len(delta))
            deltas.append(delta)
            weights.append(weight)
        total = sum(counts)
        found.append((total * (1 + width), Lists(np.array(counts), np.concatenate(deltas), np.concatenate(weights), kind)))
    return min(found, key=lambda one: one[0])[1]


def _list_text(program: Int8Program, step: Step, layer: Layer, lists: Lists, name: str, target: Stored) -> list[str]:
    most = int(lists.counts.max(initial=0))
    kind = "uint8_t" if most < 2**8 else "uint16_t" if most < 2**16 else "uint32_t"
    program.constants.integers(kind, f"{name}_count", lists.counts)
    program.constants.integers(lists.kind, f"{name}_delta", lists.delta)
    program.constants.integers("int8_t", f"{name}_weight", lists.weight)
    positions, apart = positions_of(layer), layer.apart[1]
    per_group = len(layer.weight) // layer.groups
    group = f" + o / {per_group} * {layer.group_step}" if layer.groups > 1 else ""
    body = [
        f"const int8_t *x = in{start_of(layer)}{group};",
        "int32_t " + ", ".join(f"s0_{p} = {name}_bias[o]" for p in range(positions)) + ";",
        "for (int k = 0; k < count; k++) {",
        "    const int32_t v = weight[k];",
        "    x += delta[k];",
        *[f"    s0_{p} += v * x[{p * apart}];" for p in range(positions)],
        "}",
        *_stores(program, step, name, target, layer, 1, positions, "o"),
    ]
    inner = around([*steps_over("row", layer.size[0], 1), *steps_over("column", layer.size[1], positions)], body)
    return [
        f"const {lists.kind} *delta = {name}_delta;",
        f"const int8_t *weight = {name}_weight;",
        f"for (int o = 0; o < {len(layer.weight)}; o++) {{",
        f"    const int count = (int){name}_count[o];",
        *[f"    {line}" for line in inner],
        "    delta += count;",
        "    weight += count;",
        "}",
    ]


def start_of(layer: Layer) -> str:
    """Returns the summand that says where a tile's inputs begin."""
    terms = [str(layer.first)] if layer.first else []
    terms += [f"row * {layer.apart[0]}"] if layer.size[0] > 1 else []
    terms += [f"column * {layer.apart[1]}"] if layer.size[1] > 1 else []
    return "".join(f" + {term}" for term in terms)


def _stores(
    program: Int8Program, step: Step, name: str, target: Stored, layer: Layer, rows: int, positions: int, channel: str
) -> list[str]:
    scaled = step.relu_alone
    lines: list[str] = []
    for p in range(positions):
        for r in range(rows):
            at = f"({channel} + {r})" if r or " " in channel else channel
            column = f"(column + {p})" if p else "column"
            indexes = [at, "row" if layer.size[0] > 1 else "0", column if layer.size[1] > 1 else "0"][: len(target.place.shape)]
            one = store(program, step, f"(float)s{r}_{p} * {name}_scale[{at}]", target, indexes, scaled, most=layer.most)
            lines += one if len(one) == 1 else ["{", *[f"    {line}" for line in one], "}"]
    return lines


def steps_over(index: str, size: int, each: int) -> list[str]:
    """Returns the loop over tiles; where their number does not divide the size the last begins where it ends with it."""
    if size == each:
        return ["{", f"    const int {index} = 0;"] if size > 1 or index in ("o", "g") else []
    if size % each == 0:
        return [f"for (int {index} = 0; {index} < {size}; {index} += {each}) {{"]
    return [
        f"for (int {index}0 = 0; {index}0 < {size}; {index}0 += {each}) {{",
        f"    const int {index} = {index}0 < {size - each} ? {index}0 : {size - each};",
    ]


def around(loops: Sequence[str], body: Sequence[str]) -> list[str]:
    """Returns a body inside loops, each of whose lines opens one, or is the first statement of the one before."""
    lines, depth = [], 0
    for line in loops:
        depth -= line.startswith("    ")
        lines.append("    " * depth + line)
        depth += 1
    lines += [line if line.startswith("#") else "    " * depth + line for line in body]
    return lines + ["    " * at + "}" for at in reversed(range(depth))]
