"""Fully connected layers with vectors: lanes of rows over all weights, over lists that a block of rows shares, or over each row's own."""

from __future__ import annotations

from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_source.geometry import WIDEST, round_up
from vsparse.stages.export.c_source.layers import GemmKernels, blocks_of
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program


def emit_gemm(program: Program, graph: Graph, node: Gemm, kernels: GemmKernels, source: Place, target: Place, relu: bool) -> None:
    """Adds a fully connected layer."""
    weight = graph.params[node.weight]
    name, out, terms = program.tables.table_of(node.name), *weight.shape
    x, y, ending = source.array, target.array, int(relu)
    program.use("vectors")
    if kernels.form == "sparse":
        program.do(
            f"{program.call('sparse_slices')}({x}, {name}_index, {name}_start, {name}_weight, {program.start(name)}, {name}_row, {out}, "
            f"{y}, {ending});",
        )
        return
    block = kernels.block
    full = out // block * block
    counts = [int(kept.sum()) for kept in blocks_of(weight, block)] if kernels.form == "listed" else []
    before = sum(counts[: full // block])
    # The last rows lie as close as they come: vectors read beyond them, and store nothing of it.
    for first, count, width, at in ((0, full, block, 0), (full, out - full, out - full, before * block)):
        if not count:
            continue
        to, bias = (f"{y} + {first}", f"{program.start(name)} + {first}") if first else (y, program.start(name))
        rest = f"{count}, {to}, {ending});"
        if kernels.form == "listed":
            index, start = (f"{name}_index + {before}", f"{name}_start + {first // block}") if first else (f"{name}_index", f"{name}_start")
            table = f"{name}_weight + {at}" if first else f"{name}_weight"
            program.do(f"{program.call('listed_rows')}({x}, {index}, {start}, {round_up(width, WIDEST)}, {width}, {table}, {bias}, {rest}")
        else:
            table = f"{name}_weight + {first * terms}L" if first else f"{name}_weight"
            program.do(f"{program.call('rows')}({x}, {terms}, {round_up(width, WIDEST)}, {width}, {table}, {bias}, {rest}")
