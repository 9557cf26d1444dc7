"""Fully connected layers without vectors, centre and radius together: a weight is loaded once, and inputs that are zero are passed by."""

from __future__ import annotations

from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_source.layers import GemmKernels, blocks_of
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program

# Rows in registers at one time, two sums each.
ROWS = 12
_GIVEN = "const float *bias, const float *spread, float *out, float *radius"


def is_paired(kernels: GemmKernels) -> bool:
    """Returns whether a layer has this form: its weights follow each other row by row, term by term."""
    return kernels.form in ("dense", "listed")


def emit_pair(
    program: Program, graph: Graph, node: Gemm, kernels: GemmKernels, sources: tuple[Place, Place], targets: tuple[Place, Place]
) -> None:
    """Adds a fully connected layer from centre and radius to centre and radius; its sums are those that two passes make, bit by bit."""
    name, (out, terms) = program.tables.table_of(node.name), graph.params[node.weight].shape
    listed, block = kernels.form == "listed", kernels.block
    kept = [int(one.sum()) for one in blocks_of(graph.params[node.weight], block)] if listed else []
    full, rest = divmod(out, block)
    before = sum(kept[:full])
    (x, y), (to, radius) = ([place.array for place in places] for places in (sources, targets))
    for first, width, blocks, at in ((0, block, full, 0), (full, rest, 1 if rest else 0, before * (block - rest))):
        if not blocks:
            continue
        rows = -(-width // -(-width // ROWS))
        lists = "const vs_index *index, uint32_t terms, " if listed else ""
        own = program.function(
            "pair",
            f"const float *x, const float *y, {lists}const float *weight, {_GIVEN}",
            _rows(rows, "terms" if listed else terms, width, "index[k]" if listed else "k"),
        )
        row = "r" if width % rows == 0 else f"(r < {width - rows} ? r : {width - rows})"
        ends = f"{name}_bias + o, {name}_spread + o, {to} + o, {radius} + o"
        loop = [f"for (int i = {first}; i < {first + blocks}; i++) {{"]
        if listed:
            weights = f"{name}_weight{f' + {at}' if at else ''} + from * {width}u + {row}"
            if not all(kept[first : first + blocks]):
                # A list of no terms may lie at the end of the table, and no pointer is made beyond.
                weights = f"terms > 0u ? {weights} : {name}_weight"
            loop.append(f"    const uint32_t from = {name}_start[i], terms = {name}_start[i + 1] - from;")
            given = f"{x}, {y}, {name}_index + from, terms, {weights}"
        else:
            given = f"{x}, {y}, {name}_weight + i * {block * terms} + {row}"
        program.do(
            *loop,
            f"    for (int r = 0; r < {width}; r += {rows}) {{",
            f"        const int o = i * {block} + {row};",
            f"        {own}({given}, {ends});",
            "    }",
            "}",
        )


def _rows(rows: int, terms: int | str, width: int, index: str) -> list[str]:
    """Returns the text of `rows` sums of weights and as many of their magnitudes, whose weights lie in a table [terms][width]."""
    at = [f"weight[at + {r}]" if r else "weight[at]" for r in range(rows)]
    return [
        # An index, as a pointer would move beyond the end of the table behind the last term of later rows.
        "int at = 0;",
        "float " + ", ".join(f"s{r} = bias[{r}], t{r} = spread[{r}]" for r in range(rows)) + ";",
        f"for ({'int' if index == 'k' else 'uint32_t'} k = 0; k < {terms}; k++) {{",
        f"    const float v = x[{index}], m = y[{index}];",
        "    if (m != 0.0f || v != 0.0f) {",
        *[f"        {{ const float w = {at[r]}; s{r} += w * v; t{r} += VS_MAGNITUDE(w) * m; }}" for r in range(rows)],
        "    }",
        f"    at += {width};",
        "}",
        *[f"out[{r}] = s{r};" for r in range(rows)],
        *[f"radius[{r}] = t{r};" for r in range(rows)],
    ]
