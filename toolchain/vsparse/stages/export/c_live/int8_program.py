"""The bounds of an int8 network, step by step as the inference has them: lower ends and widths in 8 bits, or centres and radii."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Relu, Reshape
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import SLACK, Stored, flat_expression, nest
from vsparse.stages.export.c_int8.program import Int8Program, offset
from vsparse.stages.export.c_live.int8_constants import of_addition, of_average, of_chain
from vsparse.stages.export.c_live.int8_refined import Refinement, error_of
from vsparse.stages.export.c_live.int8_sums import KeptLines, bound_store, bound_sum
from vsparse.stages.export.c_source.arena import Arena, Lifetime, plan_arena
from vsparse.stages.export.c_source.literals import comment, float_literal
from vsparse.stages.export.c_source.place import Place


@dataclass
class LiveSteps:
    """The functions of the bounds, one for each step but the last, whose rows are folded, and the arrays that they need.

    Arrays of lower ends lie as the inference's, with the same margins, so that its tables of positions are those of both.
    """

    graph: Graph
    program: Int8Program
    steps: tuple[Step, ...]
    stored: Mapping[str, Stored]
    aliases: Mapping[str, str]
    last: Step
    data_range: tuple[float, float]
    functions: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)
    arena: Arena = field(init=False)

    def build(self, network: int, scratch: int) -> None:
        """Adds everything; `network` are the bytes of the inference's arena, `scratch` the floats that margins need."""
        after = {self.last.result}
        for number, step in enumerate(self.steps):
            if step.result == self.last.result:
                self.calls[number] = self._score(number, step)
            elif step.result in self.aliases or set(step.inputs) & after:
                after |= {step.result} if set(step.inputs) & after else set()
            else:
                self.calls[number] = self._step(number, step)
        self.arena = self._plan(network, scratch)

    def _score(self, number: int, step: Step) -> list[str]:
        """Adds the logits of the centre, and its label: those of the sums of both ends, or of the centre itself."""
        node, source = step.head, self.stored[step.inputs[0]]
        assert isinstance(node, Gemm)
        name, classes, given = self.program.table_of(node.name), node.shape[0], [self.array(step.inputs[0], "c")]
        if source.grid is None:
            terms, parameters = prod(self.graph.shape_of(step.inputs[0])), "const float *in"
            body = [
                f"for (int i = 0; i < {classes}; i++) {{",
                f"    float sum = {name}_bias[i];",
                f"    for (int k = 0; k < {terms}; k++)",
                f"        sum += {name}_weight[i * {terms} + k] * in[k];",
                "    out[i] = sum;",
                "}",
            ]
        else:
            parameters = "const int8_t *in, const uint8_t *width"
            body = bound_sum(self.program, step, source, None)
            given.append(self.array(step.inputs[0], "r"))
        text = [f"VS_ONCE static void vs_score({parameters}, float *restrict out)", "{"]
        self.functions.append("\n".join([*text, *[one if one.startswith("#") else f"    {one}" for one in body], "}"]))
        return [
            f"vs_score({', '.join(given)}, score);",
            f"for (int i = 1; i < {classes}; i++)",
            "    label = score[i] > score[label] ? i : label;",
        ]

    def _root(self, name: str) -> str:
        return self.aliases.get(name, name)

    def array(self, name: str, kind: str) -> str:
        """Returns the name of the array of an activation's lower ends or centres (`c`), or widths or radii (`r`)."""
        return f"{kind}{self.stored[self._root(name)].place.array}"

    def _step(self, number: int, step: Step) -> list[str]:
        head, target = step.head, self.stored[step.result]
        own = replace(target, place=replace(target.place, array="out"))
        sources = [self.stored[name] for name in step.inputs]
        lines = []
        if target.has_margin and target.grid is not None:
            lines = [
                f"memset({self.array(step.result, 'c')}, {target.zero & 255}, {target.bytes});",
                f"memset({self.array(step.result, 'r')}, 0, {target.bytes});",
            ]
        if head is None:
            return [*lines, *self._input(number, step, own)]
        if isinstance(head, Conv | Gemm):
            error = error_of(self.program, step, sources[0])
            self.functions += [error.text] if isinstance(error, Refinement) else []
            body = bound_sum(self.program, step, sources[0], own, self._kept_lines(step))
        elif isinstance(head, Reshape):
            to, at = flat_expression(own.place, "i"), flat_expression(named(sources[0], "in"), "i")
            count = prod(own.place.shape)
            body = [f"for (int i = 0; i < {count}; i++) {{", f"    {to} = {at};", f"    {_spread(to)} = {width_of(at)};", "}"]
        elif isinstance(head, MaxPool):
            body = self._max_pool(step, sources[0], own)
        elif isinstance(head, AveragePool):
            body = self._average(step, sources[0], own)
        elif isinstance(head, Add):
            body = self._add(step, sources, own)
        else:
            assert isinstance(head, Relu)
            body = self._relu(sources[0], own)
        return [*lines, self._function(number, step, sources, target, body)]

    def _kept_lines(self, step: Step) -> KeptLines | None:
        """Returns what a sum keeps for backward passes, where there are such."""
        return None

    def _function(self, number: int, step: Step, sources: list[Stored], target: Stored, body: list[str]) -> str:
        name, kind = f"vs_bound_{number}", _kinds(target)
        inputs = []
        for i in range(len(sources)):
            read, which = _kinds(sources[i]), "" if i == 0 else "2"
            inputs += [f"const {read[0]} *in{which}", f"const {read[1]} *width{which}"]
        kept = self._kept_lines(step)
        more = [] if kept is None else ["float *line"]
        given = ", ".join([*inputs, f"{kind[0]} *restrict out", f"{kind[1]} *restrict spread", *more])
        text = [f"VS_ONCE static void {name}({given})", "{", *[one if one.startswith("#") else f"    {one}" for one in body], "}"]
        self.functions.append("\n".join(text))
        arrays = [self.array(one, kind) for one in (*step.inputs, step.result) for kind in ("c", "r")]
        return f"{name}({', '.join([*arrays, *([] if kept is None else [kept.place])])});"

    def _input(self, number: int, step: Step, target: Stored) -> list[str]:
        """Adds the region on the grid of the input, or behind what is applied to the input before its grid."""
        more, chain, error = of_chain(self.graph, step, self.data_range)
        loops, at, indent = nest(target.place.shape)
        low, high = (float_literal(end) for end in self.data_range)
        source = self.stored[step.inputs[0]].place
        lines = [
            f"const float x = {replace(source, array='input').at(at)};",
            "float low = x - epsilon, high = x + epsilon;",
            f"beyond |= !(x >= {low} && x <= {high});",
            f"low = low < {low} ? {low} : low;",
            f"high = high > {high} ? {high} : high;",
        ]
        if more:
            lines += [f"low -= {float_literal(float(more))};", f"high += {float_literal(float(more))};"]
        for one in chain:
            if isinstance(one.node, Relu):
                lines += ["low = low < 0.0f ? 0.0f : low;", "high = high < 0.0f ? 0.0f : high;"]
                continue
            assert isinstance(one.node, AddConstant | MulConstant)
            value, moved = self.program.constant(one.node).at(at), float_literal(float(one.error))
            if isinstance(one.node, AddConstant):
                lines += [f"low = low + {value} - {moved};", f"high = high + {value} + {moved};"]
            else:
                lines += [
                    "{",
                    f"    const float a = low * {value}, b = high * {value};",
                    f"    low = (a < b ? a : b) - {moved};",
                    f"    high = (a < b ? b : a) + {moved};",
                    "}",
                ]
        assert step.grid is not None
        inverse, moved = float_literal(float(np.float32(1) / np.float32(step.grid.scale))), float_literal(float(error))
        element = target.place.at(at)
        plain = replace(step, chain=())
        lines += bound_store(plain, f"low * {inverse} - {moved}", f"high * {inverse} + {moved}", element[element.index("[") :])
        given = "const float *input, float epsilon, int8_t *restrict out, uint8_t *restrict spread"
        opened = [*loops[:-1], f"{loops[-1]} {{"] if loops else ["{"]
        text = ["    int beyond = 0;", *[f"    {one}" for one in [*opened, *[f"{indent}{one}" for one in lines], f"{indent[4:]}}}"]]]
        self.functions.append("\n".join([f"static int vs_bound_{number}({given})", "{", *text, "    return beyond;", "}"]))
        return [f"beyond |= vs_bound_{number}(input, epsilon, {self.array(step.result, 'c')}, {self.array(step.result, 'r')});"]

    def _max_pool(self, step: Step, source: Stored, target: Stored) -> list[str]:
        node = step.head
        assert isinstance(node, MaxPool)
        _, height, width = source.place.shape
        (kh, kw), (sy, sx), (top, left) = node.kernel, node.stride, node.pads[:2]
        at = named(source, "in").at(["c", "y", "x"])
        to = target.place.at(["c", "i", "j"])
        return [
            f"for (int i = 0; i < {node.shape[1]}; i++)",
            f"    for (int j = 0; j < {node.shape[2]}; j++)",
            f"        for (int c = 0; c < {node.shape[0]}; c++) {{",
            f"            const int y0 = i * {sy}{offset(-top)}, x0 = j * {sx}{offset(-left)};",
            "            int32_t low = -128, high = -128;",
            f"            for (int y = y0 < 0 ? 0 : y0; y < y0 + {kh} && y < {height}; y++)",
            f"                for (int x = x0 < 0 ? 0 : x0; x < x0 + {kw} && x < {width}; x++) {{",
            f"                    const int32_t one = {at}, other = {at} + {width_of(at)};",
            "                    low = one > low ? one : low;",
            "                    high = other > high ? other : high;",
            "                }",
            f"            vs_enclose(low, high, &{to}, &{_spread(to)});",
            "        }",
        ]

    def _relu(self, source: Stored, target: Stored) -> list[str]:
        loops, at, indent = nest(target.place.shape)
        one, to, zero = named(source, "in").at(at), target.place.at(at), source.zero
        lines = [
            f"const int32_t low = {one}, high = {one} + {width_of(one)};",
            f"vs_enclose(low < {zero} ? {zero} : low, high < {zero} ? {zero} : high, &{to}, &{_spread(to)});",
        ]
        return inside(loops, indent, lines)

    def _average(self, step: Step, source: Stored, target: Stored) -> list[str]:
        node = step.head
        assert isinstance(node, AveragePool)
        assert source.grid is not None
        assert step.grid is not None
        window, error = prod(node.kernel), float_literal(float(of_average(step, source.grid)))
        factor = np.float32(source.grid.scale) / np.float32(window) / np.float32(step.grid.scale)
        at = named(source, "in").at(["c", f"(i * {node.stride[0]} + y)", f"(j * {node.stride[1]} + x)"])
        to = target.place.at(["c", "i", "j"])
        value = f"(float)({{}}{offset(-source.zero * window)}) * {float_literal(float(factor))}"
        return [
            f"for (int i = 0; i < {node.shape[1]}; i++)",
            f"    for (int j = 0; j < {node.shape[2]}; j++)",
            f"        for (int c = 0; c < {node.shape[0]}; c++) {{",
            "            int32_t sum = 0, more = 0;",
            f"            for (int y = 0; y < {node.kernel[0]}; y++)",
            f"                for (int x = 0; x < {node.kernel[1]}; x++) {{",
            f"                    sum += {at};",
            f"                    more += {width_of(at)};",
            "                }",
            *[
                f"            {line}"
                for line in bound_store(
                    step, f"{value.format('sum')} - {error}", f"{value.format('sum + more')} + {error}", to[to.index("[") :]
                )
            ],
            "        }",
        ]

    def _add(self, step: Step, sources: list[Stored], target: Stored) -> list[str]:
        assert step.grid is not None
        grids = [one.grid for one in sources if one.grid is not None]
        error = float_literal(float(of_addition(step, grids)))
        loops, at, indent = nest(target.place.shape)
        ends = []
        for sign in ("-", "+"):
            terms = []
            for i, one in enumerate(sources):
                element = named(one, f"in{'' if i == 0 else '2'}").at(at)
                factor = np.float32(grids[i].scale) / np.float32(step.grid.scale)
                step_of = f"(float)({element}{f' + {width_of(element)}' if sign == '+' else ''}{offset(-one.zero)})"
                terms.append(f"{step_of} * {float_literal(float(factor))}")
            ends.append(f"{' + '.join(terms)} {sign} {error}")
        to = target.place.at(at)
        return inside(loops, indent, bound_store(step, ends[0], ends[1], to[to.index("[") :]))

    def _plan(self, network: int, scratch: int) -> Arena:
        last: dict[str, int] = {}
        first: dict[str, int] = {}
        for number, step in enumerate(self.steps):
            if number in self.calls and step.result not in self.aliases:
                first[step.result] = last[step.result] = number
        for number, step in enumerate(self.steps):
            for name in step.inputs:
                root = self._root(name)
                if root in last:
                    last[root] = max(last[root], number)
        end = len(self.steps)
        last[self._root(self.last.inputs[0])] = end + 1
        lives = [Lifetime("network", network, end + 1, end + 1), Lifetime("rows", 4 * scratch, end, end)]
        lives.append(Lifetime("score", 4 * prod(self.graph.shape_of(self.last.result)), last[self.last.result], end + 1))
        del first[self.last.result]
        for name, begin in first.items():
            one = self.stored[name]
            for kind in ("c", "r"):
                lives.append(Lifetime(self.array(name, kind), one.element * one.place.size + SLACK, begin, last[name]))
        return plan_arena(lives, 4)

    def body(self) -> list[str]:
        """Returns the statements of all steps, each array a pointer into `arena`."""
        kinds = {"score": "float"}
        for name in self.stored:
            if name != self.graph.input:
                for kind, one in zip(("c", "r"), _kinds(self.stored[self._root(name)]), strict=True):
                    kinds[self.array(name, kind)] = one
        lines = []
        for number, statements in self.calls.items():
            text = "\n".join(statements)
            pointers = [
                f"{kinds[name]} *const {name} = ({kinds[name]} *)(void *)((char *)arena + {at});"
                for name, at in self.arena.offsets.items()
                if f"{name}," in text or f"{name})" in text
            ]
            lines += [
                f"    /* {comment(self.steps[number].result)} */",
                "    {",
                *[f"        {line}" for line in [*pointers, *statements]],
                "    }",
            ]
        return lines


def _kinds(one: Stored) -> tuple[str, str]:
    return ("float", "float") if one.grid is None else ("int8_t", "uint8_t")


def named(one: Stored, array: str) -> Place:
    return replace(one.place, array=array)


def width_of(element: str) -> str:
    return element.replace("in2[", "width2[", 1) if element.startswith("in2[") else element.replace("in[", "width[", 1)


def _spread(element: str) -> str:
    return element.replace("out[", "spread[", 1)


def inside(loops: list[str], indent: str, lines: list[str]) -> list[str]:
    opened = [*loops[:-1], f"{loops[-1]} {{"] if loops else ["{"]
    return [*opened, *[f"{indent}{line}" for line in lines], f"{indent[4:]}}}"]
