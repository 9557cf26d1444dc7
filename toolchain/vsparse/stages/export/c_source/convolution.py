"""C for convolutions: tables of weights without the pruned ones, the copy of the input, and the calls that sum over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Conv, Gemm, Graph
from vsparse.stages.export.c_source.costs import KernelCosts, point_tiles
from vsparse.stages.export.c_source.geometry import Planes, round_up
from vsparse.stages.export.c_source.partition import Tile, by_kernel, tiles_of
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.tiles import BLOCK, CHANNELS, POSITIONS

# Beyond this many positions lanes of output channels are not considered: each of their tiles is a call of its own.
FEW_POSITIONS = 64


def emit_conv(program: Program, graph: Graph, node: Conv, layout: Planes, source: str, target: str, relu: bool, costs: KernelCosts) -> None:
    """Adds a convolution: the copy of its input where one is needed, and sums with lanes of positions or of output channels."""
    weight, bias = graph.params[node.weight], bias_of(graph, node)
    program.use("vectors")
    if not layout.direct:
        source = _copy(program, graph, node, layout, source)
    flat = weight.reshape(len(weight), -1)
    tiles, cost = tiles_of(flat, node.groups, layout.positions, costs)
    blocks = -(-len(flat) // BLOCK)
    used = np.flatnonzero(flat.any(axis=0))
    if node.groups == 1 and layout.positions <= FEW_POSITIONS and blocks * costs.block(len(used), layout.positions) < cost:
        _lanes_of_channels(program, flat, bias, layout, used, source, target, relu)
    else:
        _lanes_of_positions(program, flat, bias, layout, weight.shape[1], tiles, source, target, relu)


def _copy(program: Program, graph: Graph, node: Conv, layout: Planes, source: str) -> str:
    program.use("planes")
    program.scratch("planes", layout.extent)
    channels, height, width = graph.shape_of(node.inputs[0])
    top, left = node.pads[:2]
    for i, (phase, shift) in enumerate(layout.taps):
        program.do(
            f"vs_planes({source}, {channels}, {height}, {width}, {phase - top}, {shift - left}, {node.stride[0]}, {node.stride[1]}, "
            f"{layout.rows}, {layout.columns}, {layout.step}, planes + {i * layout.plane});"
        )
    return "planes"


def _lanes_of_positions(
    program: Program,
    flat: NDArray[np.float32],
    bias: NDArray[np.float32],
    layout: Planes,
    channels: int,
    tiles: list[Tile],
    source: str,
    target: str,
    relu: bool,
) -> None:
    shared = ""
    for (rows, full), some in sorted(by_kernel(tiles).items(), reverse=True):
        name = program.next_name()
        program.use(f"{POSITIONS}{rows}")
        order = np.array([tile.rows for tile in some], dtype=np.int64)
        program.floats(f"{name}_weight", np.concatenate([flat[list(tile.rows)][:, tile.columns].T.reshape(-1) for tile in some]))
        program.floats(f"{name}_bias", bias[order.reshape(-1)])
        program.indexes(f"{name}_row", order.reshape(-1))
        if full:
            if not shared:
                shared = f"{name}_offset"
                program.indexes(shared, layout.offsets)
            offsets, start = shared, "0"
        else:
            offsets, start = f"{name}_offset", f"{name}_start"
            base = channels * layout.step
            program.indexes(offsets, np.concatenate([tile.group * base + layout.offsets[tile.columns] for tile in some]))
            program.indexes(start, np.cumsum([0, *(len(tile.columns) for tile in some)]), "uint32_t")
        program.do(
            f"vs_positions{rows}({source}, {offsets}, {start}, {flat.shape[1]}, {name}_weight, {name}_bias, {name}_row, {len(some)}, "
            f"{target}, {layout.positions}, {int(relu)});"
        )


def _lanes_of_channels(
    program: Program,
    flat: NDArray[np.float32],
    bias: NDArray[np.float32],
    layout: Planes,
    used: NDArray[np.int64],
    source: str,
    target: str,
    relu: bool,
) -> None:
    name, out, terms, points = program.next_name(), len(flat), len(used), layout.positions
    width = round_up(out, BLOCK)
    padded = np.zeros((width, len(used)), np.float32)
    padded[:out] = flat[:, used]
    program.floats(f"{name}_weight", np.ascontiguousarray(padded.reshape(-1, BLOCK, len(used)).transpose(0, 2, 1)))
    program.floats(f"{name}_bias", np.concatenate([bias, np.zeros(width - out, np.float32)]))
    program.indexes(f"{name}_offset", layout.offsets[used])
    sizes = point_tiles(layout.positions)
    program.use("store_channels", *(f"{CHANNELS}{size}" for size in sorted(set(sizes))))
    body = [
        f"VS_PARALLEL({layout.positions * flat.size}L)",
        f"for (int o = 0; o < {out}; o += {BLOCK}) {{",
        f"    float sums[{max(sizes) * BLOCK}];",
    ]
    start = 0
    for size in sizes:
        body += [
            f"    vs_channels{size}({source} + {start}, {name}_offset, {name}_weight + o * {terms}L, {terms}, {name}_bias + o, sums);",
            f"    vs_store_channels(sums, {size}, {out} - o, {target} + o * {points}L + {start}, {points}, {int(relu)});",
        ]
        start += size
    program.do(*body, "}")


def bias_of(graph: Graph, node: Conv | Gemm) -> NDArray[np.float32]:
    """Returns the bias of an affine operator, zeros where it has none."""
    return np.zeros(node.shape[0], np.float32) if node.bias is None else graph.params[node.bias]
