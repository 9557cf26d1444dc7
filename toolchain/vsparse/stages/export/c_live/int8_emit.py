"""model.int8.c with the live certificate: bounds in integers, and margins in float32 (docs/numerics.md, section 14.5)."""

from __future__ import annotations

from math import prod

import numpy as np

from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.graph.ir import Gemm, Graph
from vsparse.stages.export.c_int8 import emit_int8_c, sums
from vsparse.stages.export.c_int8.emit import Int8Parts, Int8Source, int8_prefix
from vsparse.stages.export.c_live.emit import UNIT_RANGE, common_text, kernel
from vsparse.stages.export.c_live.int8_constants import last_step, of_margin_int8, require_live_int8
from vsparse.stages.export.c_live.int8_program import LiveSteps
from vsparse.stages.export.c_live.interface import declarations
from vsparse.stages.export.c_live.margins import LastLayer, folded_text, label_text
from vsparse.stages.export.c_source.layers import bias_of
from vsparse.stages.export.c_source.text import Addition


def emit_live_int8_c(
    graph: Graph,
    model_sha256: str = "",
    title: str = "",
    prefix: str = DEFAULT_PREFIX,
    data_range: tuple[float, float] = UNIT_RANGE,
) -> Int8Source:
    """Returns the C files of a quantised graph as `emit_int8_c` does, with `PREFIX_int8_certify` and `PREFIX_int8_radius`.

    Raises InputError as `emit_int8_c` does, and for a node that has no interval form or whose bounds could overflow, by its name.
    """
    names = int8_prefix(prefix)

    def add(parts: Int8Parts) -> Addition:
        require_live_int8(graph, data_range)
        last = last_step(graph)
        live = LiveSteps(graph, parts.program, parts.steps, parts.stored, parts.aliases, last, data_range)
        layer = _last_layer(graph, parts, live)
        live.build(parts.arena_bytes, 2 * layer.terms)
        texts = [
            *live.functions,
            f"#define VS_LABEL_AT {live.arena.offsets['network'] // 4}",
            layer.row,
            label_text(layer),
            "/* Bounds every activation; returns the label of the centre, or -1 where the input leaves the data range. */",
            "VS_ONCE static int vs_bounds(float *arena, const float *input, float epsilon)",
            "{",
            "    int beyond = 0;",
            *live.body(),
            "    return beyond ? -1 : vs_label(arena);",
            "}",
            folded_text(layer).partition("\n\n")[2],
        ]
        offsets = {name: f"{at}" for name, at in live.arena.offsets.items()}
        text = "\n".join(texts)
        for name, at in offsets.items():
            text = text.replace(f"@{name}@", at)
        return Addition(
            declarations=lambda floats: declarations(names, floats, data_range),
            common="\n".join([common_text(), *([kernel("ends")] if "vs_ends(" in text else []), kernel("settle8")]),
            texts={"int8": [text]},
            entry=kernel("certify").replace("PREFIX", names.upper()).replace("prefix", names),
            arenas={"int8": -(-live.arena.size // 4)},
        )

    return emit_int8_c(graph, model_sha256, title, prefix, add)


def _last_layer(graph: Graph, parts: Int8Parts, live: LiveSteps) -> LastLayer:
    """Returns the last layer, its arrays named by `@array@` in place of where the arena has them."""
    step = last_step(graph)
    node, source = step.head, parts.stored[step.inputs[0]]
    assert isinstance(node, Gemm)
    program = parts.program
    name = program.table_of(node.name)
    places = [f"(const {{}} *)(const void *)((const char *)arena + @{live.array(step.inputs[0], kind)}@)" for kind in ("c", "r")]
    classes, rows = node.shape[0], "(float *)(void *)((char *)arena + @rows@)"
    if source.grid is None:
        terms = prod(graph.shape_of(step.inputs[0]))
        row = [
            f"    memcpy(row, {name}_weight + (long)i * {terms}, {terms} * sizeof(float));",
            f"    return {name}_bias[i];",
        ]
        kinds, c, r = ("float", "float"), "c[k]", "r[k]"
    else:
        layer = sums.layer_of(program, step, node, source)
        terms, lists = int(layer.offsets.max()) + 1, sums.lists_of(layer)
        if sums.is_listed(layer, lists):
            row = [
                "    long at = 0, k = 0;",
                f"    memset(row, 0, {terms} * sizeof(float));",
                "    for (int o = 0; o < i; o++)",
                f"        k += {name}_count[o];",
                f"    for (const long end = k + {name}_count[i]; k < end; k++) {{",
                f"        at += {name}_delta[k];",
                f"        if ({name}_weight[k] != 0)",
                f"            row[at] = {name}_scale[i] * (float){name}_weight[k];",
                "    }",
            ]
        else:
            row = [
                f"    for (int k = 0; k < {terms}; k++)",
                f"        row[k] = {name}_scale[i] * (float){name}_weight[(long)i * {layer.terms} + k];",
            ]
        integers = np.zeros(classes, np.int32) if node.bias is None else graph.integers[node.bias].values.astype(np.int32)
        row.append(f"    return {name}_live_bias[i];")
        zero = source.zero
        kinds = ("int8_t", "uint8_t")
        c, r = f"(float)(2 * (c[k] {'-' if zero >= 0 else '+'} {abs(zero)}) + r[k]) * 0.5f", "(float)r[k] * 0.5f"
    values, offsets = bias_of(graph, node), np.arange(terms)
    weight = graph.params[node.weight]
    if source.grid is not None:
        values, offsets = layer.factor * integers.astype(np.float32), layer.offsets
        weight = layer.factor[:, None] * layer.weight.astype(np.float32)
        program.constants.floats(f"{name}_live_bias", values)
    reach = np.zeros(terms, np.float32)
    reach[offsets] = np.abs(weight).max(axis=0)
    program.constants.floats(f"{name}_reach", reach)
    head = ["/* Writes the weights of one row of the last layer, and returns its bias. */", "static float vs_row(int i, float *row)", "{"]
    text = "\n".join([*head, *row, "}"])
    centre, radius = (place.format(kind) for place, kind in zip(places, kinds, strict=True))
    most, big = float(np.abs(values).max(initial=0)), float(of_margin_int8(weight.shape[1]))
    return LastLayer(centre, radius, rows, kinds, c, r, text, classes, terms, f"{name}_reach", most, big)
