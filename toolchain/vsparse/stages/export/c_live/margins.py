"""The margins in C: rows of the last layer, subtracted from each other as the inference has them (docs/numerics.md, section 14.3)."""

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

    `row` is the text of `vs_row(i, row)`, which writes the weights of one row and returns its bias; where rows lie `stride` floats from
    term to term in one table, it returns where they begin, and `bias` is the table of biases. `reach` is that of the largest magnitude of
    each term's weights, `most` that of the biases, and `big` the factor of what they add up to.
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
    reach: str
    most: float
    big: float
    stride: int = 0
    bias: str = ""

    def begin(self, index: str, name: str) -> tuple[str, str]:
        """Returns the definition of a row, and the expression of its bias, which makes the row where there is no table of them."""
        if self.stride:
            return f"const float *const {name} = vs_row({index});", f"{self.bias}[{index}]"
        return f"float *const {name} = {self.rows}{f' + {self.terms}' if name == 'other' else ''};", f"vs_row({index}, {name})"

    def at(self, name: str) -> str:
        """Returns the expression of term k of a row."""
        return f"{name}[k * {self.stride}]" if self.stride > 1 else f"{name}[k]"


def float_layer(program: Program, graph: Graph, node: Gemm, kernels: GemmKernels, offsets: tuple[int, int, int]) -> LastLayer:
    """Returns the last layer of a float32 network; `offsets` in the arena: centre, radius, two rows."""
    weight, bias = graph.params[node.weight], bias_of(graph, node)
    classes, terms = weight.shape
    table = program.tables.table_of(node.name)
    program.tables.floats(f"{table}_reach", np.abs(weight).max(axis=0))
    direct = kernels.form == "dense" and classes <= kernels.block
    row = "\n".join(_direct_text(table) if direct else _row_text(graph, node, kernels, table))
    centre, radius, rows = (f"arena + {offset}" for offset in offsets)
    big, most = float(of_margin(terms)), float(np.abs(bias).max(initial=0))
    stride = classes if direct else 0
    return LastLayer(
        centre, radius, rows, ("float", "float"), "c[k]", "r[k]", row, classes, terms, f"{table}_reach", most, big, stride, f"{table}_bias"
    )


def folded_text(last: LastLayer) -> str:
    """Returns the functions that read a row of the last layer and bound margins."""
    kinds, (own, own_bias), (other, other_bias) = last.kinds, last.begin("label", "own"), last.begin("i", "other")
    return "\n".join(
        [
            last.row,
            "",
            _TITLE,
            "VS_ONCE static float vs_margin(float *arena, int label)",
            "{",
            f"    const {kinds[0]} *const c = {last.centre};",
            f"    const {kinds[1]} *const r = {last.radius};",
            f"    {own}",
            f"    const float bias = {own_bias};",
            f"    float size = {float_literal(last.most)}, least = FLT_MAX;",
            f"    for (int k = 0; k < {last.terms}; k++)",
            f"        size += {last.reach}[k] * (VS_MAGNITUDE({last.c}) + {last.r});",
            f"    for (int i = 0; i < {last.classes}; i++) {{",
            f"        {other}",
            "        float sum, error, margin, spread = 0.0f;",
            "        if (i == label)",
            "            continue;",
            f"        sum = bias - {other_bias};",
            f"        for (int k = 0; k < {last.terms}; k++) {{",
            f"            const float d = {last.at('own')} - {last.at('other')};",
            f"            sum += d * {_grouped(last.c)};",
            f"            spread += VS_MAGNITUDE(d) * {_grouped(last.r)};",
            "        }",
            f"        error = spread + {float_literal(last.big)} * size;",
            *_END,
        ]
    )


def label_text(last: LastLayer) -> str:
    """Returns the function that tells which logit of the centre is the largest, by the rows."""
    own, own_bias = last.begin("i", "own")
    return "\n".join(
        [
            "/* Returns the label of the centre. */",
            "static int vs_label(float *arena)",
            "{",
            f"    const {last.kinds[0]} *const c = {last.centre};",
            *([f"    const {last.kinds[1]} *const r = {last.radius};"] if "r[" in last.c else []),
            "    float most = -FLT_MAX;",
            "    int label = 0;",
            f"    for (int i = 0; i < {last.classes}; i++) {{",
            f"        {own}",
            f"        float sum = {own_bias};",
            f"        for (int k = 0; k < {last.terms}; k++)",
            f"            sum += {last.at('own')} * {_grouped(last.c)};",
            "        label = sum > most ? i : label;",
            "        most = sum > most ? sum : most;",
            "    }",
            "    return label;",
            "}",
        ]
    )


def _grouped(expression: str) -> str:
    return f"({expression})" if " " in expression else expression


def _direct_text(table: str) -> list[str]:
    return [
        "/* Returns where the weights of one row of the last layer begin. */",
        "static const float *vs_row(int i)",
        "{",
        f"    return {table}_weight + i;",
        "}",
    ]


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
