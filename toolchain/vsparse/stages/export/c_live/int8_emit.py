"""model.int8.c with the live certificate: bounds in integers, and margins in float32 (docs/numerics.md, section 14.5)."""

from __future__ import annotations

from math import prod

import numpy as np

from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_int8 import emit_int8_c, sums
from vsparse.stages.export.c_int8.emit import Int8Parts, Int8Source, int8_prefix
from vsparse.stages.export.c_live.budget import BOUNDS_ALONE
from vsparse.stages.export.c_live.emit import UNIT_RANGE, common_text, kernel
from vsparse.stages.export.c_live.int8_budget import with_second_int8, without_second
from vsparse.stages.export.c_live.int8_constants import last_step, of_margin_int8, require_live_int8
from vsparse.stages.export.c_live.int8_plan import absence_of_second
from vsparse.stages.export.c_live.int8_program import LiveSteps
from vsparse.stages.export.c_live.int8_traced import TracedSteps
from vsparse.stages.export.c_live.interface import declarations
from vsparse.stages.export.c_live.margins import LastLayer, folded_text
from vsparse.stages.export.c_source.layers import bias_of
from vsparse.stages.export.c_source.text import Addition
from vsparse.stages.export.c_source.weights import Notation


def emit_live_int8_c(
    graph: Graph,
    model_sha256: str = "",
    title: str = "",
    prefix: str = DEFAULT_PREFIX,
    weights: Notation = "auto",
    data_range: tuple[float, float] = UNIT_RANGE,
    second: bool = False,
) -> Int8Source:
    """Returns the C files of a quantised graph as `emit_int8_c` does, with `PREFIX_int8_certify` and `PREFIX_int8_radius`.

    With `second` there is `PREFIX_int8_certify_budget` too, which bounds open margins by backward passes (docs/numerics.md, section 17).
    Where no pass can take a node (`require_second_int8`) that function does nothing more, and the header says so, by the node's name.
    Raises InputError as `emit_int8_c` does, and for a node that has no interval form or whose bounds could overflow, by its name.
    """
    names = int8_prefix(prefix)

    def add(parts: Int8Parts) -> Addition:
        require_live_int8(graph, data_range)
        last = last_step(graph)
        absent = absence_of_second(graph, data_range) if second else ""
        kind = TracedSteps if second and not absent else LiveSteps
        live = kind(graph, parts.program, parts.steps, parts.stored, parts.aliases, last, data_range)
        traced, layer = isinstance(live, TracedSteps), _last_layer(graph, parts, live)
        live.build(parts.arena_bytes, layer.scratch)
        texts = [
            *live.functions,
            f"#define VS_LABEL_AT {live.arena.offsets['network'] // 4}",
            "/* Bounds every activation; returns the label of the centre, or -1 where the input leaves the data range. */",
            f"VS_ONCE static int {'vs_trace' if traced else 'vs_bounds'}(float *arena, const float *input, float epsilon"
            f"{', float *kept' if traced else ''})",
            "{",
            "    int beyond = 0, label = 0;",
            *live.body(),
            "    return beyond ? -1 : label;",
            "}",
            *(BOUNDS_ALONE if traced else []),
            folded_text(layer),
        ]
        offsets = {name: f"{at}" for name, at in live.arena.offsets.items()}
        text = "\n".join(texts)
        for name, at in offsets.items():
            text = text.replace(f"@{name}@", at)
        first = Addition(
            declarations=lambda floats: declarations(names, floats, data_range),
            common="\n".join(
                [
                    common_text(),
                    *[kernel(name) for name in ("ends", "farthest") if f"vs_{name}(" in text],
                    kernel("settle8"),
                    *([kernel("settled8")] if "vs_settled(" in text else []),
                ]
            ),
            texts={"int8": [text]},
            entry=kernel("certify").replace("PREFIX", names.upper()).replace("prefix", names),
            arenas={"int8": -(-live.arena.size // 4)},
        )
        own = max(first.arenas["int8"], parts.arena_bytes // 4)
        if absent:
            return without_second(first, names, absent)
        return with_second_int8(first, live, parts.program, names, own, data_range) if isinstance(live, TracedSteps) else first

    return emit_int8_c(graph, model_sha256, title, prefix, weights, add)


def _last_layer(graph: Graph, parts: Int8Parts, live: LiveSteps) -> LastLayer:
    """Returns the last layer, its arrays named by `@array@` in place of where the arena has them."""
    step = last_step(graph)
    node, source = step.head, parts.stored[step.inputs[0]]
    assert isinstance(node, Gemm)
    program, classes = parts.program, node.shape[0]
    name = program.table_of(node.name)
    values, weight = bias_of(graph, node), graph.params[node.weight]
    rows, own, of_class = "", "w[label * {}]", "w[i * {}]"
    columns: tuple[str, ...] = ()
    if source.grid is None:
        terms = prod(graph.shape_of(step.inputs[0]))
        offsets = np.arange(terms)
        columns = (f"for (int k = 0; k < {terms}; k++) {{", f"    const float *const w = {name}_weight + k;")
        own, of_class = own.format(terms), of_class.format(terms)
        kinds, magnitude, r = ("float", "float"), "VS_MAGNITUDE(c[k]) + r[k]", "r[k]"
    else:
        layer = sums.layer_of(program, step, node, source)
        terms, lists, offsets = int(layer.offsets.max()) + 1, sums.lists_of(layer), layer.offsets
        if sums.is_listed(layer, lists):
            rows = "\n".join(_row_text(name, terms))
        else:
            columns = (f"for (int k = 0; k < {terms}; k++) {{", f"    const int8_t *const w = {name}_weight + k;")
            own = f"{name}_scale[label] * (float){own.format(layer.terms)}"
            of_class = f"{name}_scale[i] * (float){of_class.format(layer.terms)}"
        integers = np.zeros(classes, np.int32) if node.bias is None else graph.integers[node.bias].values.astype(np.int32)
        values = layer.factor * integers.astype(np.float32)
        weight = layer.factor[:, None] * layer.weight.astype(np.float32)
        kinds, r = ("int8_t", "uint8_t"), "(float)r[k] * 0.5f"
        least = f"c[k] {'-' if source.zero >= 0 else '+'} {abs(source.zero)}"
        magnitude = f"(float)({least} + r[k])" if source.grid.steps[0] >= 0 else f"vs_farthest({least}, r[k])"
    reach = np.zeros(terms, np.float32)
    reach[offsets] = np.abs(weight).max(axis=0)
    program.constants.floats(f"{name}_reach", reach)
    centre, radius = (
        f"(const {kind} *)(const void *)((const char *)arena + @{live.array(step.inputs[0], which)}@)"
        for which, kind in zip(("c", "r"), kinds, strict=True)
    )
    return LastLayer(
        centre,
        radius,
        "(const float *)(const void *)((const char *)arena + @score@)",
        "(float *)(void *)((char *)arena + @rows@)",
        kinds,
        magnitude,
        r,
        classes,
        terms,
        f"{name}_reach",
        float(np.abs(values).max(initial=0)),
        float(of_margin_int8(weight.shape[1])),
        columns,
        own,
        of_class,
        rows,
    )


def _row_text(name: str, terms: int) -> list[str]:
    """Returns `vs_row`, which writes the weights of one row, from the list that the inference reads."""
    return [
        "/* Writes the weights of one row of the last layer. */",
        "static void vs_row(int i, float *row)",
        "{",
        "    long at = 0, k = 0;",
        f"    memset(row, 0, {terms} * sizeof(float));",
        "    for (int o = 0; o < i; o++)",
        f"        k += {name}_count[o];",
        f"    for (const long end = k + {name}_count[i]; k < end; k++) {{",
        f"        at += {name}_delta[k];",
        f"        if ({name}_weight[k] != 0)",
        f"            row[at] = {name}_scale[i] * (float){name}_weight[k];",
        "    }",
        "}",
    ]
