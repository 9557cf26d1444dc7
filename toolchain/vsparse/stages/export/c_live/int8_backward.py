"""The function `vs_backward` of model.int8.c: coefficients of steps from the last rows to the input (docs/numerics.md, section 17).

Coefficients lie as the steps do, so that the tables of the inference are those of both; they go through the outputs one after the other,
and pass by those that are zero: most units are constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsparse.graph.ir import Add, AveragePool, Conv, Gemm, MaxPool, Relu, Reshape
from vsparse.stages.export.c_int8 import sums
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import Stored, flat_expression, nest
from vsparse.stages.export.c_int8.program import Int8Program
from vsparse.stages.export.c_live.constants import ENLARGE, LOWER
from vsparse.stages.export.c_live.int8_plan import IntegerPlan, factors_of, of_rows, spare_of_lanes, total_of_integers
from vsparse.stages.export.c_live.int8_program import inside, named
from vsparse.stages.export.c_live.int8_traced import literal
from vsparse.stages.export.c_source.arena import Arena, Lifetime, plan_arena
from vsparse.stages.export.c_source.literals import comment


class IntegerBackward:
    """The text of one network: its functions, and the arena of its coefficients, in floats."""

    def __init__(self, program: Int8Program, plan: IntegerPlan) -> None:
        self.program, self.plan, self.functions = program, plan, list[str]()
        self.arena = self._arena()

    def _arena(self) -> Arena:
        first, last = {self.plan.stop: 0}, {self.plan.stop: 0}
        for number, step in enumerate(self.plan.walk, 1):
            last[step.result] = number
            for name in step.inputs:
                root = self.plan.root(name)
                first.setdefault(root, number)
                last[root] = number
        for root in self.plan.ends:
            last[root] = len(self.plan.walk) + 1
        return plan_arena([Lifetime(root, self.plan.size_of(root), first[root], last[root]) for root in first])

    def _at(self, root: str) -> str:
        return f"arena + {self.arena.offsets[root]}"

    def _kept(self, kind: str, root: str) -> str:
        return f"kept + {self.plan.offsets[f'{kind} {root}']}"

    def text(self) -> list[str]:
        """Returns the functions of the layers, and behind them `vs_backward`."""
        plan, filled = self.plan, {self.plan.stop}
        body = self._rows()
        passes: list[str] = []
        for number, step in enumerate(plan.walk):
            passes.append(f"/* {comment(step.result)} */")
            for root in dict.fromkeys(plan.root(name) for name in step.inputs):
                if root not in filled:
                    passes.append(f"memset({self._at(root)}, 0, {plan.size_of(root)} * sizeof(float));")
                    filled.add(root)
            passes += self._step(number, step)
        passes += [f"VS_PART({self._end(root)});" for root in plan.ends]
        factor, constant = (literal(one) for one in total_of_integers(plan))
        return [
            *self.functions,
            "/* Returns a lower bound of the logit of a label minus that of another class: over the last activation, or over the input. */",
            "VS_ONCE static float vs_backward(float *arena, const float *kept, int label, int other, int whole)",
            "{",
            "    float part, sum = 0.0f, size = 0.0f;",
            *[f"    {line}" for line in body],
            "    if (!whole) {",
            f"        VS_PART({self._end(plan.stop)});",
            "    } else {",
            *[f"        {line}" for line in passes],
            "    }",
            f"    sum -= (size * {factor} + {constant}) * {literal(ENLARGE)};",
            f"    sum -= VS_MAGNITUDE(sum) * {literal(LOWER)};",
            "    return sum >= -FLT_MAX && sum <= FLT_MAX ? sum : -FLT_MAX;",
            "}",
        ]

    def _end(self, root: str) -> str:
        return f"vs_least({self._at(root)}, {self._steps(root)}, {self._of_end(root)})"

    def _steps(self, root: str) -> str:
        return f"(const int8_t *)(const void *)({self._kept('end', root)})"

    def _of_end(self, root: str) -> str:
        """Returns the arguments that say how many ends there are, which step stands for zero, and what they move outward by."""
        size = self.plan.size_of(root)
        return f"{size}, {self.plan.stored[root].zero}, {literal(spare_of_lanes(size))}"

    def _rows(self) -> list[str]:
        """Adds the function that adds a row of the last layer; returns the statements that subtract two."""
        plan, step = self.plan, self.plan.last
        node, source = step.head, plan.stored[step.inputs[0]]
        assert isinstance(node, Gemm)
        layer, name = sums.layer_of(self.program, step, node, source), self.program.table_of(node.name)
        lists = sums.lists_of(layer)
        values = np.zeros(len(layer.weight), np.int32)
        if node.bias is not None:
            values = plan.graph.integers[node.bias].values.astype(np.int32)
        self.program.constants.floats(f"{name}_plain", values.astype(np.float32))
        size, zero, spare = self._of_end(plan.stop).split(", ")
        term = ["a[at] += v;", f"error += VS_MAGNITUDE(v) * vs_farther(end, {size}, at, {zero}, {spare});"]
        if sums.is_listed(layer, lists):
            loop = [
                "int at = 0;",
                "long k = 0;",
                "for (int o = 0; o < i; o++)",
                f"    k += {name}_count[o];",
                f"for (const long last = k + {name}_count[i]; k < last; k++) {{",
                f"    const float v = scale * (float){name}_weight[k];",
                f"    at += {name}_delta[k];",
                *[f"    {line}" for line in term],
                "}",
            ]
        else:
            loop = [
                f"const int8_t *const w = {name}_weight + i * {layer.terms};",
                f"for (int at = 0; at < {layer.length}; at++) {{",
                "    const float v = scale * (float)w[at];",
                *[f"    {line}" for line in term],
                "}",
            ]
        self.functions.append(
            "\n".join(
                [
                    "/* Adds a row of the last layer, or subtracts it; returns the magnitudes of its terms. */",
                    "VS_ONCE static float vs_row_back(int i, float sign, const int8_t *end, float *a)",
                    "{",
                    f"    const float scale = sign * {name}_scale[i];",
                    f"    float error = VS_MAGNITUDE(scale * {name}_plain[i]);",
                    *[f"    {line}" for line in loop],
                    "    return error;",
                    "}",
                ]
            )
        )
        given = f"{self._steps(plan.stop)}, {self._at(plan.stop)}"
        return [
            f"memset({self._at(plan.stop)}, 0, {plan.size_of(plan.stop)} * sizeof(float));",
            f"VS_PART({name}_scale[label] * {name}_plain[label]);",
            f"VS_PART(-({name}_scale[other] * {name}_plain[other]));",
            f"part = vs_row_back(label, 1.0f, {given});",
            f"part += vs_row_back(other, -1.0f, {given});",
            f"VS_PART(-({literal(of_rows(plan))} * part));",
        ]

    def _step(self, number: int, step: Step) -> list[str]:
        """Returns the statements that pass a step."""
        plan, node, root = self.plan, step.head, step.result
        target = _as(plan.stored[root], "t")
        if isinstance(node, MaxPool):
            given = f"{self._at(root)}, {self._kept('best', root)}, {plan.size_of(root)}"
            return [f"VS_PART(vs_tops({given}));", f"vs_pool_back({given}, {self._at(plan.root(step.inputs[0]))});"]
        lines = []
        sources = [_as(plan.stored[name], "a" if i == 0 else "a2") for i, name in enumerate(step.inputs)]
        if isinstance(node, Reshape):
            body = [f"for (int i = 0; i < {np.prod(node.shape)}; i++)"]
            body.append(f"    {flat_expression(sources[0].place, 'i')} += {flat_expression(target.place, 'i')};")
        else:
            lines.append(f"VS_PART(vs_unround({self._at(root)}, {self._kept('line', root)}, {plan.size_of(root)}));")
            body = self._body(step, sources, target)
        arrays = ["const float *restrict t", "float *restrict a", *(["float *a2"] if len(sources) > 1 else [])]
        if len(sources) > 1:  # both may be one array
            arrays[1] = "float *a"
        text = [f"VS_ONCE static void vs_back_{number}({', '.join(arrays)})", "{", *[f"    {line}" for line in body], "}"]
        self.functions.append("\n".join(text))
        places = [self._at(root), *(self._at(plan.root(name)) for name in step.inputs)]
        return [*lines, f"vs_back_{number}({', '.join(places)});"]

    def _body(self, step: Step, sources: Sequence[Stored], target: Stored) -> list[str]:
        node = step.head
        loops, at, indent = nest(target.place.shape)
        if isinstance(node, Conv | Gemm):
            return self._products(step, node, target)
        if isinstance(node, AveragePool):
            element = sources[0].place.at([at[0], f"({at[1]} * {node.stride[0]} + y)", f"({at[2]} * {node.stride[1]} + x)"])
            lines = [
                f"for (int y = 0; y < {node.kernel[0]}; y++)",
                f"    for (int x = 0; x < {node.kernel[1]}; x++)",
                f"        {element} += {target.place.at(at)};",
            ]
            return inside(loops, indent, lines)
        if isinstance(node, Add):
            # One operand after the other, as both may be one array.
            factors = factors_of(self.plan, step)
            return [
                line
                for one, factor in zip(sources, factors, strict=True)
                for line in inside(loops, indent, [f"{one.place.at(at)} += {target.place.at(at)} * {literal(factor[0])};"])
            ]
        assert isinstance(node, Relu)
        return inside(loops, indent, [f"{sources[0].place.at(at)} += {target.place.at(at)};"])

    def _products(self, step: Step, node: Conv | Gemm, target: Stored) -> list[str]:
        layer, name = sums.layer_of(self.program, step, node, self.plan.stored[step.inputs[0]]), self.program.table_of(node.name)
        lists, per_group = sums.lists_of(layer), len(layer.weight) // layer.groups
        group = f" + o / {per_group} * {layer.group_step}" if layer.groups > 1 else ""
        rows, columns = layer.size
        element = target.place.at(["o", "row" if rows > 1 else "0", "column" if columns > 1 else "0"][: len(target.place.shape)])
        begin = f"a{sums.start_of(layer)}{group}"
        head = [f"const float v = {element};"]
        if sums.is_listed(layer, lists):
            inner = [
                *head,
                f"float *x = {begin};",
                "for (int k = 0; v != 0.0f && k < count; k++) {",
                "    x += delta[k];",
                "    *x += (float)weight[k] * v;",
                "}",
            ]
            return [
                f"const {lists.kind} *delta = {name}_delta;",
                f"const int8_t *weight = {name}_weight;",
                f"for (int o = 0; o < {len(layer.weight)}; o++) {{",
                f"    const int count = (int){name}_count[o];",
                *[f"    {line}" for line in _over(layer.size, inner)],
                "    delta += count;",
                "    weight += count;",
                "}",
            ]
        (outer, inner_count), (down, across) = layer.counts, layer.steps
        at = [f"i * {down}"] * (outer > 1) + [f"j * {across}"] * (inner_count > 1)
        run = " + ".join([f"i * {inner_count * layer.padded}"] * (outer > 1) + [f"j * {layer.padded}"] * (inner_count > 1))
        call = f"vs_spread_row(v, w{f' + {run}' if run else ''}, {layer.length}, x{''.join(f' + {one}' for one in at)});"
        lines = [call]
        for index, count in (("j", inner_count), ("i", outer)):
            lines = sums.loop_over(index, count, lines) if count > 1 else lines
        inner = [*head, f"float *const x = {begin};", "if (v == 0.0f)", "    continue;", *lines]
        return [
            f"for (int o = 0; o < {len(layer.weight)}; o++) {{",
            f"    const int8_t *const w = {name}_weight + o * {layer.terms};",
            *[f"    {line}" for line in _over(layer.size, inner)],
            "}",
        ]


def _over(size: tuple[int, int], lines: list[str]) -> list[str]:
    """Returns lines inside loops over the positions of a map."""
    rows, columns = size
    if columns > 1:
        lines = sums.loop_over("column", columns, lines)
    if rows > 1:
        lines = sums.loop_over("row", rows, lines)
    return lines if rows * columns > 1 else ["{", *[f"    {line}" for line in lines], "}"]


def _as(one: Stored, array: str) -> Stored:
    return Stored(named(one, array), one.grid)
