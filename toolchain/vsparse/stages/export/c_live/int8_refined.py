"""What one sum of int8 may err by, where what all sums of a layer may err by decides how it is rounded (docs/numerics.md, section 14.5).

The error of a layer is one number, for the largest activations that its grid has; activations are most often far smaller. Only where the
two would be rounded to other steps the activations of the one sum are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsparse.graph.ir import Conv, Gemm
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import Stored
from vsparse.stages.export.c_int8.program import Int8Program, offset
from vsparse.stages.export.c_int8.sums import Layer, is_listed, layer_of, lists_of, loop_over, start_of
from vsparse.stages.export.c_live.int8_constants import STEP, is_refined, of_one_sum, of_sum
from vsparse.stages.export.c_source.literals import float_literal


@dataclass(frozen=True)
class Refinement:
    """The C function `NAME_error` of a layer, `text`, and how it is called for one sum; `most` is the error of all of them."""

    text: str
    name: str
    most: str
    listed: bool
    by_row: bool
    by_column: bool

    def call(self, channel: str, column: str) -> str:
        """Returns the expression of the error of one sum."""
        given = ["in", "width", channel, *(["row"] if self.by_row else []), *([column] if self.by_column else [])]
        given += ["delta", "weight", "count"] if self.listed else []
        return f"{self.name}_error({', '.join(given)})"

    def store(self, low: str, high: str, ends: str, places: str, channel: str, column: str) -> list[str]:
        """Returns the statements that store two values in units of the grid: `ends` of the grid, and the `places` that they go to."""
        return [
            "{",
            f"    const float low = {low}, high = {high};",
            f"    if (!vs_settled(low, high, {float_literal(float(STEP))}, {self.most}, {ends}, {places})) {{",
            f"        const float own = {self.call(channel, column)};",
            f"        vs_moved(low, high, own < {self.most} ? own : {self.most}, {ends}, {places});",
            "    }",
            "}",
        ]


# What both ends of a sum move outward by: a float32 number in C.
Moved = Refinement | str


def error_of(program: Int8Program, step: Step, source: Stored) -> Moved:
    """Returns what a layer's sums may err by; as one number where that is small for all of them, or none are rounded to a grid."""
    node = step.head
    assert isinstance(node, Conv | Gemm)
    assert source.grid is not None
    most = float_literal(float(of_sum(program.graph, step, source.grid)))
    if not is_refined(program.graph, step, source.grid):
        return most
    layer, name = layer_of(program, step, node, source), program.table_of(node.name)
    lists = lists_of(layer)
    listed = is_listed(layer, lists)
    by_row, by_column = layer.size[0] > 1, layer.size[1] > 1
    each = float_literal(float(of_one_sum(program.graph, node)))
    given = ["const int8_t *in", "const uint8_t *width", "int o", *(["int row"] if by_row else []), *(["int column"] if by_column else [])]
    given += [f"const {lists.kind} *delta", "const int8_t *weight", "int count"] if listed else []
    text = [
        "/* Returns what one sum may err by, for the activations that it reads. */",
        f"static float {name}_error({', '.join(given)})",
        "{",
        f"    int32_t size = 0, bias = {name}_bias[o];",
        *[f"    {line}" for line in (_over_list(layer, source.zero) if listed else _over_runs(layer, source.zero, name))],
        "    size += bias < 0 ? -bias : bias;",
        f"    return (float)size * {name}_scale[o] * {each} + {float_literal(float(STEP))};",
        "}",
    ]
    return Refinement("\n".join(text), name, most, listed, by_row, by_column)


def _added(at: str, width: str, zero: int) -> list[str]:
    """Returns the statements that add a weight w and the larger of the magnitudes of both ends of its activation."""
    return [
        f"const int32_t low = {at}{offset(-zero)}, high = low + {width};",
        "size += (w < 0 ? -w : w) * (high > -low ? high : -low);",
        f"bias += w * {zero};",
    ]


def _group(layer: Layer) -> str:
    return f" + o / {len(layer.weight) // layer.groups} * {layer.group_step}" if layer.groups > 1 else ""


def _over_list(layer: Layer, zero: int) -> list[str]:
    lines = ["x += delta[k];", "y += delta[k];", "const int32_t w = weight[k];", *_added("*x", "*y", zero)]
    begin = f"{start_of(layer)}{_group(layer)}"
    return [f"const int8_t *x = in{begin};", f"const uint8_t *y = width{begin};", *loop_over("k", "count", lines)]


def _over_runs(layer: Layer, zero: int, name: str) -> list[str]:
    (outer, inner), (down, across), padded = layer.counts, layer.steps, layer.padded
    at = [f"i * {down}"] * (outer > 1) + [f"j * {across}"] * (inner > 1)
    run = {(True, True): f"(i * {inner} + j) * {padded}", (True, False): f"i * {padded}", (False, True): f"j * {padded}"}
    number = run.get((outer > 1, inner > 1), "0")
    lines = [f"const int32_t w = weights[{'' if number == '0' else f'{number} + '}k];", *_added("x[at + k]", "y[at + k]", zero)]
    lines = [f"const int at = {' + '.join(at) or '0'};", *loop_over("k", layer.length, lines)]
    for index, count in (("j", inner), ("i", outer)):
        lines = loop_over(index, count, lines) if count > 1 else lines
    begin = f"{start_of(layer)}{_group(layer)}"
    return [
        f"const int8_t *const x = in{begin}, *const weights = {name}_weight + o * {layer.terms};",
        f"const uint8_t *const y = width{begin};",
        *lines,
    ]
