"""The margins in C: logits of the centre, less what rows of the last layer may differ by (docs/numerics.md, section 14.3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_int8.place import flat_expression
from vsparse.stages.export.c_live.constants import CONSTANT, ENLARGE, FLOOR, LOWER, of_margin
from vsparse.stages.export.c_source.layers import SLICE, GemmKernels, bias_of, blocks_of
from vsparse.stages.export.c_source.literals import float_literal
from vsparse.stages.export.c_source.place import Place
from vsparse.stages.export.c_source.program import Program

_END = [
    f"        margin = sum - (error + {float_literal(FLOOR)}) * {float_literal(ENLARGE)};",
    f"        margin -= VS_MAGNITUDE(margin) * {float_literal(LOWER)};",
    "        if (!(margin > -FLT_MAX))",
    "            return -FLT_MAX;",
    "        least = margin < least ? margin : least;",
    "    }",
    "    return least;",
    "}",
]
_TITLE = "/* Returns a lower bound of the logit of a label minus that of any other class. */"


@dataclass(frozen=True)
class LastLayer:
    """What the last layer reads: where in the arena, as which types, and the expressions of element k, as a float32 number each.

    `score` is where the logits of the centre are. Where one table has all rows, `columns` opens the loop over its terms: lines that define
    `k` and what reads `weight` (the expression of the weight of class i) and `own` (that of the label); else `row` is the text of
    `vs_row(i, row)`, which writes the weights of one row. `reach` is the table of the largest magnitude of each term's weights, `most`
    that of the biases, and `big` the factor of what they add up to. `magnitude` is the expression of |c| + r.
    """

    centre: str
    radius: str
    score: str
    rows: str
    kinds: tuple[str, str]
    magnitude: str
    r: str
    classes: int
    terms: int
    reach: str
    most: float
    big: float
    columns: tuple[str, ...] = ()
    own: str = ""
    weight: str = ""
    row: str = ""

    @property
    def scratch(self) -> int:
        """The floats at `rows`: what each class's margin may lose, or two rows of weights."""
        return scratch_of(self.classes, self.terms, bool(self.columns))


def scratch_of(classes: int, terms: int, together: bool) -> int:
    """Returns the floats that margins need beside what they read, where all classes are bounded together, or one after the other."""
    return classes if together else 2 * terms


def is_together(node: Gemm, kernels: GemmKernels) -> bool:
    """Returns whether the weights of all classes follow each other, term by term, so that margins read them where they are."""
    return kernels.form in ("dense", "listed") and node.shape[0] <= kernels.block


def float_layer(program: Program, graph: Graph, node: Gemm, kernels: GemmKernels, offsets: tuple[int, int, int, int]) -> LastLayer:
    """Returns the last layer of a float32 network; `offsets` in the arena: centre, radius, the logits of the centre, and the scratch."""
    weight, bias = graph.params[node.weight], bias_of(graph, node)
    classes, terms = weight.shape
    table = program.tables.table_of(node.name)
    program.tables.floats(f"{table}_reach", np.abs(weight).max(axis=0))
    columns: tuple[str, ...] = ()
    row = ""
    if not is_together(node, kernels):
        row = "\n".join(_row_text(graph, node, kernels, table))
    elif kernels.form == "dense":
        columns = (f"for (int k = 0; k < {terms}; k++) {{", f"    const float *const w = {table}_weight + k * {classes};")
    else:
        columns = (
            f"for (uint32_t e = 0; e < {table}_start[1]; e++) {{",
            f"    const float *const w = {table}_weight + e * {classes}u;",
            f"    const int k = {table}_index[e];",
        )
    centre, radius, score, scratch = (f"arena + {offset}" for offset in offsets)
    return LastLayer(
        centre,
        radius,
        score,
        scratch,
        kinds=("float", "float"),
        magnitude="VS_MAGNITUDE(c[k]) + r[k]",
        r="r[k]",
        classes=classes,
        terms=terms,
        reach=f"{table}_reach",
        most=float(np.abs(bias).max(initial=0)),
        big=float(of_margin(terms)),
        columns=columns,
        own="w[label]",
        weight="w[i]",
        row=row,
    )


def folded_text(last: LastLayer) -> str:
    """Returns the function that bounds margins, and, where it is needed, the one that reads a row of the last layer."""
    head = [
        _TITLE,
        "VS_ONCE static float vs_margin(float *arena, int label)",
        "{",
        f"    const {last.kinds[0]} *const c = {last.centre};",
        f"    const {last.kinds[1]} *const r = {last.radius};",
        f"    const float *const score = {last.score};",
    ]
    size = f"float size = {float_literal(last.most)}, least = FLT_MAX;"
    end = [f"        error += {float_literal(last.big)} * size;", *_END]
    if last.columns:
        # An element that is zero without a radius adds zeros: most of those behind a ReLU.
        body = [
            f"    float *restrict const spread = {last.rows};",
            f"    {size}",
            f"    for (int i = 0; i < {last.classes}; i++)",
            "        spread[i] = 0.0f;",
            *[f"    {line}" for line in last.columns],
            f"        const float m = {last.magnitude}, radius = {last.r}, own = {last.own};",
            "        if (m == 0.0f)",
            "            continue;",
            f"        size += {last.reach}[k] * m;",
            *(["        if (radius == 0.0f)", "            continue;"] if last.kinds[1] != "float" else []),
            f"        for (int i = 0; i < {last.classes}; i++)",
            f"            spread[i] += VS_MAGNITUDE(own - {last.weight}) * radius;",
            "    }",
            f"    for (int i = 0; i < {last.classes}; i++) {{",
            "        float sum, error, margin;",
            "        if (i == label)",
            "            continue;",
            "        sum = score[label] - score[i];",
            "        error = spread[i];",
        ]
        return "\n".join([*head, *body, *end])
    body = [
        f"    float *const own = {last.rows}, *const other = {last.rows} + {last.terms};",
        f"    {size}",
        "    vs_row(label, own);",
        f"    for (int k = 0; k < {last.terms}; k++)",
        f"        size += {last.reach}[k] * ({last.magnitude});",
        f"    for (int i = 0; i < {last.classes}; i++) {{",
        "        float sum, margin, error = 0.0f;",
        "        if (i == label)",
        "            continue;",
        "        sum = score[label] - score[i];",
        "        vs_row(i, other);",
        f"        for (int k = 0; k < {last.terms}; k++)",
        f"            error += VS_MAGNITUDE(own[k] - other[k]) * {_grouped(last.r)};",
    ]
    return "\n".join([last.row, "", *head, *body, *end])


def _grouped(expression: str) -> str:
    return f"({expression})" if " " in expression else expression


def plain_text(centre: Place, radius: Place, offsets: tuple[int, int]) -> str:
    """Returns the function that bounds margins by the bounds of the logits themselves."""
    arrays = [Place(name, place.shape, place.origin, place.steps, place.size) for name, place in (("c", centre), ("r", radius))]
    (c, own_c), (r, own_r) = ((flat_expression(place, "i"), flat_expression(place, "label")) for place in arrays)
    return "\n".join(
        [
            _TITLE,
            "VS_ONCE static float vs_margin(float *arena, int label)",
            "{",
            f"    const float *const c = arena + {offsets[0]}, *const r = arena + {offsets[1]};",
            "    float least = FLT_MAX;",
            f"    for (int i = 0; i < {prod(centre.shape)}; i++) {{",
            "        float sum, error, margin;",
            "        if (i == label)",
            "            continue;",
            f"        sum = {own_c} - {c};",
            f"        error = {own_r} + {r} + {float_literal(CONSTANT)} * (VS_MAGNITUDE({own_c}) + VS_MAGNITUDE({c}));",
            *_END,
        ]
    )


def _row_text(graph: Graph, node: Gemm, kernels: GemmKernels, table: str) -> list[str]:
    """Returns `vs_row`, which writes the weights of one row, from the tables that the inference reads."""
    weight = graph.params[node.weight]
    classes, terms = weight.shape
    head = [
        "/* Writes the weights of one row of the last layer. */",
        "static void vs_row(int i, float *row)",
        "{",
    ]
    zeros = f"    memset(row, 0, {terms} * sizeof(float));"
    if kernels.form == "sparse":
        return [
            *head,
            "    int at = 0;",
            zeros,
            f"    while (at < {classes - 1} && {table}_row[at] != i)",
            "        at++;",
            f"    for (long k = {table}_start[at / {SLICE}]; k < (long){table}_start[at / {SLICE} + 1]; k++) {{",
            f"        const float value = {table}_weight[{SLICE} * k + at % {SLICE}];",
            "        if (value != 0.0f) /* a shorter row ends in zeros */",
            f"            row[{table}_index[{SLICE} * k + at % {SLICE}]] = value;",
            "    }",
            "}",
        ]
    block = kernels.block
    full, rest = divmod(classes, block)
    width = f"{block}" if not rest else f"{rest}" if not full else f"(i < {full * block} ? {block} : {rest})"
    number = "0" if classes <= block else f"i / {block}"
    lane = "i" if classes <= block else f"i % {block}"
    if kernels.form == "dense":
        begin = "" if classes <= block else f" + i / {block} * {block * terms}L"
        return [
            *head,
            f"    const float *const weight = {table}_weight{begin} + {lane};",
            f"    for (int k = 0; k < {terms}; k++)",
            f"        row[k] = weight[k * {width}];",
            "}",
        ]
    before = sum(int(kept.sum()) for kept in blocks_of(np.asarray(weight), block)[:full]) * block
    first = f"(i < {full * block} ? {block}L * k : {before}L + {rest}L * (k - {table}_start[{full}]))"
    if not rest or not full:
        first = f"{block if full else rest}L * k"
    return [
        *head,
        zeros,
        f"    for (long k = {table}_start[{number}]; k < (long){table}_start[{number} + 1]; k++)",
        f"        row[{table}_index[k]] = {table}_weight[{first} + {lane}];",
        "}",
    ]
