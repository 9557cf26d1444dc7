"""C for fully connected layers of few non-zero weights: eight rows side by side, each over its own list, in both texts."""

from __future__ import annotations

from vsparse.stages.export.c_source.layers import SLICE
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program


def emit_sparse_rows(program: Program, name: str, out: int, source: Place, target: Place, relu: bool) -> None:
    """Adds the layer whose tables begin with `name`."""
    program.scratch("sums", SLICE)
    program.do(
        f"for (int o = 0; o < {out}; o += {SLICE}) {{",
        f"    const uint32_t from = {name}_start[o / {SLICE}];",
        f"    {program.call('sparse_rows')}({source.array}, {name}_index + {SLICE} * (long)from, {name}_weight + {SLICE} * (long)from, "
        f"(int)({name}_start[o / {SLICE} + 1] - from), {program.start(name)} + o, sums);",
        f"    for (int i = 0; i < {SLICE} && o + i < {out}; i++)",
        f"        {target.array}[{name}_row[o + i]] = {'sums[i] < 0.0f ? 0.0f : sums[i]' if relu else 'sums[i]'};",
        "}",
    )
