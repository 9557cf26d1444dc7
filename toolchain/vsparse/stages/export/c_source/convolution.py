"""Convolutions with vectors: the copy of the input, and the calls that sum over it, with lanes of positions or of output channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Conv, Graph
from vsparse.stages.export.c_source.costs import KernelCosts, point_tiles
from vsparse.stages.export.c_source.geometry import Planes, round_up
from vsparse.stages.export.c_source.layers import FOUR, ConvKernels, kept_of, singles_of
from vsparse.stages.export.c_source.partition import ChannelTile, by_kernel, even_cuts
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.tiles import BLOCK, CHANNELS, DENSE, POSITIONS


def emit_conv(
    program: Program,
    graph: Graph,
    node: Conv,
    kernels: ConvKernels,
    costs: KernelCosts,
    layout: Planes,
    source: Place,
    target: Place,
    relu: bool,
) -> None:
    """Adds a convolution: the copy of its input where one is needed, and the sums."""
    weight = graph.params[node.weight]
    flat = weight.reshape(len(weight), -1)
    program.use("vectors")
    read = source.array if layout.direct else _copy(program, node, layout, source)
    if kernels.own == "tiles":
        _tiles(program, node, flat, kernels.tiles, layout, weight.shape[1] * layout.step, read, target.array, relu)
        return
    name = program.tables.table_of(node.name)
    if kernels.own == "channels":
        used = np.flatnonzero(flat.any(axis=0))
        padded = np.zeros((round_up(len(flat), BLOCK), len(used)), np.float32)
        padded[: len(flat)] = flat[:, used]
        program.tables.floats(f"{name}_lanes", np.ascontiguousarray(padded.reshape(-1, BLOCK, len(used)).transpose(0, 2, 1)), "vector")
        _channels(program, name, f"{name}_lanes", len(flat), layout, used, read, target.array, relu)
        return
    if kernels.lanes == "channels":
        _channels(program, name, f"{name}_blocks", len(flat), layout, np.arange(flat.shape[1]), read, target.array, relu)
    elif kernels.fours:
        _dense(program, graph, node, kernels, costs, layout, read, target.array, relu)
    single = singles_of(graph, node)
    if len(single):
        kept = kept_of(graph, node)
        group = single // (len(flat) // node.groups) * (weight.shape[1] * layout.step)
        program.tables.indexes(f"{name}_list", (group[:, None] + layout.offsets)[kept], "vector")
        row = f"{name}_channel" if len(single) < len(flat) else "0"
        program.do(
            f"{program.call(f'{POSITIONS}1')}({read}, {name}_list, {name}_start, 0, {name}_weight, {program.start(name)}, {row}, "
            f"{len(single)}, {target.array}, {layout.positions}, {int(relu)});"
        )


def _copy(program: Program, node: Conv, layout: Planes, source: Place) -> str:
    program.use("planes")
    program.scratch("planes", layout.extent)
    channels, height, width = source.shape
    top, left = node.pads[:2]
    for i, (phase, shift) in enumerate(layout.taps):
        program.do(
            f"vs_planes({source.array}, {channels}, {height}, {width}, {phase - top}, {shift - left}, {node.stride[0]}, {node.stride[1]}, "
            f"{layout.rows}, {layout.columns}, {layout.step}, planes + {i * layout.plane});"
        )
    return "planes"


def _dense(
    program: Program,
    graph: Graph,
    node: Conv,
    kernels: ConvKernels,
    costs: KernelCosts,
    layout: Planes,
    read: str,
    write: str,
    relu: bool,
) -> None:
    """Adds the channels that have all weights: tiles of rows in their own order, from blocks of four."""
    name, weight = program.tables.table_of(node.name), graph.params[node.weight]
    terms, per_group, rows = weight[0].size, len(weight) // node.groups, FOUR * kernels.fours
    program.tables.indexes(f"{name}_offset", layout.offsets, "vector")
    g = "" if node.groups == 1 else "g"
    base = f" + g * {weight.shape[1] * layout.step}L" if g else ""
    cuts = even_cuts(rows, terms, layout.positions, costs)
    calls, first = [], 0
    for size in sorted(set(cuts), reverse=True):
        count = cuts.count(size)
        to, bias = (f" + g * {per_group}L * {layout.positions}", f" + g * {per_group}") if g else ("", "")
        table = f"{name}_blocks{f' + g * {rows * terms}L' if g else ''}"
        calls.append(
            f"{program.call(f'{DENSE}{size}')}({read}{base}, {name}_offset, {terms}, {table}, {kernels.block}, "
            f"{program.start(name)}{bias}, {first}, {count}, {write}{to}, {layout.positions}, {int(relu)});"
        )
        first += size * count
    if g:
        program.do(f"for (int g = 0; g < {node.groups}; g++) {{", *[f"    {call}" for call in calls], "}")
    else:
        program.do(*calls)


def _tiles(
    program: Program,
    node: Conv,
    flat: NDArray[np.float32],
    tiles: tuple[ChannelTile, ...],
    layout: Planes,
    group: int,
    read: str,
    write: str,
    relu: bool,
) -> None:
    """Adds tiles from tables of their own: each has the terms that one of its rows has a weight for."""
    name, tables, shared = program.tables.table_of(node.name), program.tables, ""
    for (rows, full), some in sorted(by_kernel(tiles).items(), reverse=True):
        own = f"{name}_{'all' if full else 'some'}{rows}"
        order = np.array([tile.rows for tile in some], dtype=np.int64)
        values = [flat[list(tile.rows)][:, tile.columns].T.reshape(-1) for tile in some]
        tables.floats(f"{own}_weight", np.concatenate(values), "vector")
        tables.indexes(f"{own}_row", order.reshape(-1), "vector")
        if full:
            if not shared:
                shared = f"{name}_offset"
                tables.indexes(shared, layout.offsets, "vector")
            offsets, start = shared, "0"
        else:
            offsets, start = f"{own}_offset", f"{own}_start"
            tables.indexes(offsets, np.concatenate([tile.group * group + layout.offsets[tile.columns] for tile in some]), "vector")
            tables.integers(start, np.cumsum([0, *(len(tile.columns) for tile in some)]), "vector", kind="uint32_t")
        program.do(
            f"{program.call(f'{POSITIONS}{rows}')}({read}, {offsets}, {start}, {flat.shape[1]}, {own}_weight, "
            f"{program.start(name)}, {own}_row, {len(some)}, {write}, {layout.positions}, {int(relu)});"
        )


def _channels(
    program: Program,
    name: str,
    table: str,
    out: int,
    layout: Planes,
    used: NDArray[np.int64],
    read: str,
    write: str,
    relu: bool,
) -> None:
    """Adds lanes of output channels: blocks of 16, at a few positions at a time."""
    terms, positions = len(used), layout.positions
    program.tables.indexes(f"{name}_offset", layout.offsets[used], "vector")
    sizes = point_tiles(positions)
    program.use("store_channels")
    calls = {size: program.call(f"{CHANNELS}{size}") for size in sorted(set(sizes))}
    body = [
        f"VS_PARALLEL({positions * out * terms}L)",
        f"for (int o = 0; o < {out}; o += {BLOCK}) {{",
        f"    float sums[{max(sizes) * BLOCK}];",
    ]
    start = 0
    for size in sizes:
        body += [
            f"    {calls[size]}({read} + {start}, {name}_offset, {table} + o * {terms}L, {terms}, {program.start(name)} + o, sums);",
            f"    vs_store_channels(sums, {size}, {out} - o, {write} + o * {positions}L + {start}, {positions}, {int(relu)});",
        ]
        start += size
    program.do(*body, "}")
