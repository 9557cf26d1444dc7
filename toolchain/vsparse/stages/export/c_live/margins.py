"""The margins in C: rows of the last layer subtracted from each other as they lie in the tables of the inference (docs/numerics.md, 14.3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_int8.place import flat_expression
from vsparse.stages.export.c_live.constants import CONSTANT, ENLARGE, FLOOR, LOWER, of_margin
from vsparse.stages.export.c_source.layers import SLICE, GemmKernels, blocks_of
from vsparse.stages.export.c_source.literals import float_literal
from vsparse.stages.export.c_source.place import Place

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

    `row` is the text of `vs_row(i, row)`, `big` the G of its sums.
    """

    centre: str
    radius: str
    rows: str
    kinds: tuple[str, str]
    c: str
    r: str
    row: str
    classes: int
    terms: int
    big: float


def float_layer(graph: Graph, node: Gemm, kernels: GemmKernels, table: str, offsets: tuple[int, int, int]) -> LastLayer:
    """Returns the last layer of a float32 network; `offsets` in the arena: centre, radius, two rows."""
    classes, terms = graph.params[node.weight].shape
    centre, radius, rows = (f"arena + {offset}" for offset in offsets)
    row = "\n".join(_row_text(graph, node, kernels, table))
    return LastLayer(centre, radius, rows, ("float", "float"), "c[k]", "r[k]", row, classes, terms, float(of_margin(terms)))


def folded_text(last: LastLayer) -> str:
    """Returns the functions that read a row of the last layer and bound margins."""
    big, kinds = float_literal(last.big), last.kinds
    return "\n".join(
        [
            last.row,
            "",
            _TITLE,
            "VS_ONCE static float vs_margin(float *arena, int label)",
            "{",
            f"    const {kinds[0]} *const c = {last.centre};",
            f"    const {kinds[1]} *const r = {last.radius};",
            f"    float *const own = {last.rows}, *const other = own + {last.terms};",
            "    const float bias = vs_row(label, own);",
            "    float size = VS_MAGNITUDE(bias), least = FLT_MAX;",
            f"    for (int k = 0; k < {last.terms}; k++)",
            f"        size += VS_MAGNITUDE(own[k]) * (VS_MAGNITUDE({last.c}) + {last.r});",
            f"    for (int i = 0; i < {last.classes}; i++) {{",
            "        float sum, second, error, margin, spread = 0.0f;",
            "        if (i == label)",
            "            continue;",
            "        sum = vs_row(i, other);",
            "        second = VS_MAGNITUDE(sum);",
            "        sum = bias - sum;",
            f"        for (int k = 0; k < {last.terms}; k++) {{",
            f"            const float x = {last.c}, y = {last.r}, d = own[k] - other[k];",
            "            sum += d * x;",
            "            spread += VS_MAGNITUDE(d) * y;",
            "            second += VS_MAGNITUDE(other[k]) * (VS_MAGNITUDE(x) + y);",
            "        }",
            f"        error = spread + {big} * (size + second);",
            *_END,
        ]
    )


def label_text(last: LastLayer) -> str:
    """Returns the function that tells which logit of the centre is the largest, by the rows."""
    return "\n".join(
        [
            "/* Returns the label of the centre. */",
            "static int vs_label(float *arena)",
            "{",
            f"    const {last.kinds[0]} *const c = {last.centre};",
            *([f"    const {last.kinds[1]} *const r = {last.radius};"] if "r[" in last.c else []),
            f"    float *const own = {last.rows};",
            "    float most = -FLT_MAX;",
            "    int label = 0;",
            f"    for (int i = 0; i < {last.classes}; i++) {{",
            "        float sum = vs_row(i, own);",
            f"        for (int k = 0; k < {last.terms}; k++)",
            f"            sum += own[k] * {last.c};",
            "        label = sum > most ? i : label;",
            "        most = sum > most ? sum : most;",
            "    }",
            "    return label;",
            "}",
        ]
    )


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
    """Returns `vs_row`, which writes the weights of one row and returns its bias, from the tables that the inference reads."""
    weight = graph.params[node.weight]
    classes, terms = weight.shape
    head = [
        "/* Writes the weights of one row of the last layer, and returns its bias. */",
        "static float vs_row(int i, float *row)",
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
            f"    return {table}_bias[at];",
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
            f"    return {table}_bias[i];",
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
        f"    return {table}_bias[i];",
        "}",
    ]
