"""Fully connected layers without vectors: some rows in registers, so that each input is loaded once for them."""

from __future__ import annotations

from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_source.layers import GemmKernels, blocks_of
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.sparse_rows import emit_sparse_rows

# Rows in registers at one time.
ROWS = 20


def emit_gemm(program: Program, graph: Graph, node: Gemm, kernels: GemmKernels, source: Place, target: Place, relu: bool) -> None:
    """Adds a fully connected layer."""
    name = program.tables.table_of(node.name)
    if kernels.form == "sparse":
        emit_sparse_rows(program, name, node.shape[0], source, target, relu)
        return
    if kernels.form == "listed":
        _listed(program, graph, node, kernels.block, source, target, relu)
        return
    out, terms = graph.params[node.weight].shape
    block = kernels.block
    full, rest = divmod(out, block)
    for start, width, blocks in ((0, block, full), (full * block, rest, 1 if rest else 0)):
        if not blocks:
            continue
        parts = -(-width // ROWS)
        rows = -(-width // parts)
        own = program.function(
            "rows", "const float *x, const float *weight, const float *bias, float *out", _rows(program, rows, terms, width, relu)
        )
        end = start + width * blocks
        if rows == width and blocks == 1:
            program.do(
                f"{own}({source.array}, {name}_weight + {start * terms}, {program.start(name)} + {start}, {target.array} + {start});"
            )
            continue
        # Rows that their number does not divide overlap: some are computed twice.
        row = "r" if width % rows == 0 else f"(r < {width - rows} ? r : {width - rows})"
        program.do(
            f"for (int o = {start}; o < {end}; o += {width})",
            f"    for (int r = 0; r < {width}; r += {rows})",
            f"        {own}({source.array}, {name}_weight + o * {terms} + {row}, {program.start(name)} + o + {row}, "
            f"{target.array} + o + {row});",
        )


def _listed(program: Program, graph: Graph, node: Gemm, block: int, source: Place, target: Place, relu: bool) -> None:
    """Adds blocks of rows, each over the list of inputs that one of them has a weight for."""
    weight, name = graph.params[node.weight], program.tables.table_of(node.name)
    full, rest = divmod(len(weight), block)
    before = sum(int(kept.sum()) for kept in blocks_of(weight, block)[:full])
    for first, width, blocks, at in ((0, block, full, 0), (full, rest, 1 if rest else 0, before * (block - rest))):
        if not blocks:
            continue
        rows = -(-width // -(-width // ROWS))
        own = program.function(
            "listed",
            "const float *x, const vs_index *index, const float *weight, uint32_t terms, const float *bias, float *out",
            _rows(program, rows, "terms", width, relu, "index[k]"),
        )
        row = "r" if width % rows == 0 else f"(r < {width - rows} ? r : {width - rows})"
        weights = f"{name}_weight{f' + {at}' if at else ''} + from * {width}u + {row}"
        if not all(kept.any() for kept in blocks_of(weight, block)[first : first + blocks]):
            # A list of no terms may lie at the end of the table, and no pointer is made beyond.
            weights = f"terms > 0u ? {weights} : {name}_weight"
        program.do(
            f"for (int i = {first}; i < {first + blocks}; i++) {{",
            f"    const uint32_t from = {name}_start[i], terms = {name}_start[i + 1] - from;",
            f"    for (int r = 0; r < {width}; r += {rows}) {{",
            f"        const int o = i * {block} + {row};",
            f"        {own}({source.array}, {name}_index + from, {weights}, terms, {program.start(name)} + o, {target.array} + o);",
            "    }",
            "}",
        )


def _rows(program: Program, rows: int, terms: int | str, width: int, relu: bool, index: str = "k") -> list[str]:
    """Returns the text of `rows` sums, whose weights lie in a table [terms][width]; `index` says which input a term multiplies."""
    return [
        # An index, as a pointer would move beyond the end of the table behind the last term of later rows.
        "int at = 0;",
        "float " + ", ".join(f"s{r} = bias[{r}]" for r in range(rows)) + ";",
        f"for ({'int' if index == 'k' else 'uint32_t'} k = 0; k < {terms}; k++) {{",
        f"    const float v = x[{index}];",
        "    VS_UNLESS_ZERO(v) {",
        *[f"        s{r} += {program.weight(f'weight[at + {r}]' if r else 'weight[at]')} * v;" for r in range(rows)],
        "    }",
        f"    at += {width};",
        "}",
        *[f"out[{r}] = {f's{r} < 0.0f ? 0.0f : s{r}' if relu else f's{r}'};" for r in range(rows)],
    ]
