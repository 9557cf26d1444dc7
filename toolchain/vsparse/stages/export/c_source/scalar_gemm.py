"""Fully connected layers without vectors: some rows in registers, so that each input is loaded once for them."""

from __future__ import annotations

from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_source.layers import BLOCK, is_sparse
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.sparse_rows import emit_sparse_rows

# Rows in registers at one time.
ROWS = 20


def emit_gemm(program: Program, graph: Graph, node: Gemm, source: Place, target: Place, relu: bool) -> None:
    """Adds a fully connected layer."""
    name = program.tables.table_of(node.name)
    if is_sparse(graph, node):
        emit_sparse_rows(program, name, node.shape[0], source, target, relu)
        return
    out, terms = graph.params[node.weight].shape
    full, rest = divmod(out, BLOCK)
    for start, width, blocks in ((0, BLOCK, full), (full * BLOCK, rest, 1 if rest else 0)):
        if not blocks:
            continue
        parts = -(-width // ROWS)
        rows = -(-width // parts)
        own = program.function(
            "rows", "const float *x, const float *weight, const float *bias, float *out", _rows(rows, terms, width, relu)
        )
        end = start + width * blocks
        if rows == width and blocks == 1:
            program.do(f"{own}({source.array}, {name}_weight + {start * terms}, {name}_bias + {start}, {target.array} + {start});")
            continue
        # Rows that their number does not divide overlap: some are computed twice.
        row = "r" if width % rows == 0 else f"(r < {width - rows} ? r : {width - rows})"
        program.do(
            f"for (int o = {start}; o < {end}; o += {width})",
            f"    for (int r = 0; r < {width}; r += {rows})",
            f"        {own}({source.array}, {name}_weight + o * {terms} + {row}, {name}_bias + o + {row}, {target.array} + o + {row});",
        )


def _rows(rows: int, terms: int, width: int, relu: bool) -> list[str]:
    """Returns the text of `rows` sums, whose weights lie in a table [terms][width]."""
    return [
        "float " + ", ".join(f"s{r} = bias[{r}]" for r in range(rows)) + ";",
        f"for (int k = 0; k < {terms}; k++) {{",
        "    const float v = x[k];",
        "    VS_UNLESS_ZERO(v) {",
        *[f"        s{r} += weight[{r}] * v;" for r in range(rows)],
        "    }",
        f"    weight += {width};",
        "}",
        *[f"out[{r}] = {f's{r} < 0.0f ? 0.0f : s{r}' if relu else f's{r}'};" for r in range(rows)],
    ]
