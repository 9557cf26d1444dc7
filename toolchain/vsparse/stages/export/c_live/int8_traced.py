"""The interval pass of an int8 network that keeps, between its steps, what backward passes need, where there is a place to keep it in."""

from __future__ import annotations

from dataclasses import dataclass, field

from vsparse.graph.ir import Add, AveragePool, Conv, Gemm, MaxPool, Relu, Reshape
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import Stored, nest
from vsparse.stages.export.c_int8.program import offset
from vsparse.stages.export.c_live.backward_plan import UP
from vsparse.stages.export.c_live.int8_constants import of_addition, of_average
from vsparse.stages.export.c_live.int8_plan import IntegerPlan, factors_of, of_window, plan_of_integers, share_of, spare_of_lanes
from vsparse.stages.export.c_live.int8_program import LiveSteps, inside, named, width_of
from vsparse.stages.export.c_live.int8_sums import KeptLines
from vsparse.stages.export.c_source.literals import float_literal
from vsparse.stages.export.c_source.place import Place


def literal(value: object) -> str:
    """Returns a float32 number in C."""
    return float_literal(float(value))  # type: ignore[arg-type]


@dataclass
class TracedSteps(LiveSteps):
    """The steps of the interval pass, and behind each what it keeps: sums by themselves, other steps by a function of theirs."""

    plan: IntegerPlan = field(init=False)

    def __post_init__(self) -> None:
        """Plans the passes; InputError for a network that has none, by the name of the node."""
        self.plan = plan_of_integers(self.graph, self.stored, self.aliases)
        self._walk = {step.result for step in self.plan.walk}

    def _kept(self, kind: str, root: str) -> str:
        return f"kept + {self.plan.offsets[f'{kind} {root}']}"

    def _kept_lines(self, step: Step) -> KeptLines | None:
        node = step.head
        if step.result not in self._walk or not isinstance(node, Conv | Gemm):
            return None
        if node.bias is not None:
            values = self.graph.integers[node.bias].values.astype("int32").astype("float32")
            self._add_plain(f"{self.program.table_of(node.name)}_plain", values)
        return KeptLines(
            f"kept ? {self._kept('line', step.result)} : 0",
            literal(share_of(self.plan, step)),
            literal(spare_of_lanes(self.plan.size_of(step.result))),
            self.stored[step.result].zero,
            step.has_relu,
            node.bias is not None,
        )

    def _add_plain(self, name: str, values: object) -> None:
        if all(table.name != name for table in self.program.constants.tables):
            self.program.constants.floats(name, values)  # type: ignore[arg-type]

    def _step(self, number: int, step: Step) -> list[str]:
        lines, own = super()._step(number, step), []
        root, target = step.result, self.stored[step.result]
        if step.result in self._walk and not isinstance(step.head, Conv | Gemm | Reshape):
            kind = "best" if isinstance(step.head, MaxPool) else "line"
            if target.has_margin:
                own.append(f"memset({self._kept(kind, root)}, 0, {(3 if kind == 'best' else 4) * target.place.size} * sizeof(float));")
            own.append(self._keep(number, step))
        elif step.result in self._walk and target.has_margin and isinstance(step.head, Conv | Gemm):
            size = 4 * target.place.size
            lines = [f"if (kept)\n    memset({self._kept('line', root)}, 0, {size} * sizeof(float));", *lines]
        if f"end {root}" in self.plan.offsets:
            size, to = target.place.size, self._kept("end", root)
            own.append(f"memcpy({to}, {self.array(root, 'c')}, {size});")
            own.append(f"memcpy((int8_t *)(void *)({to}) + {size}, {self.array(root, 'r')}, {size});")
        return [*lines, *(["if (kept) {", *[f"    {line}" for line in own], "}"] if own else [])]

    def _keep(self, number: int, step: Step) -> str:
        """Adds the function that keeps what a step other than a sum needs; returns its call."""
        sources, target = [self.stored[name] for name in step.inputs], self.stored[step.result]
        own = Stored(Place("out", *_rest(target.place)), target.grid)
        if isinstance(step.head, MaxPool):
            body, kind = self._windows(step, step.head, sources[0], own), "best"
        else:
            body, kind = self._lines(step, sources, own), "line"
        given = []
        for i in range(len(sources)):
            more = "" if i == 0 else "2"
            given += [f"const int8_t *in{more}", f"const uint8_t *width{more}"]
        if kind == "line":
            given += ["const int8_t *out", "const uint8_t *spread"]
        self.functions.append(
            "\n".join(
                [
                    f"VS_ONCE static void vs_keep_{number}({', '.join([*given, f'float *{kind}'])})",
                    "{",
                    *[f"    {one}" for one in body],
                    "}",
                ]
            )
        )
        read = (*step.inputs, step.result) if kind == "line" else step.inputs
        arrays = [self.array(name, which) for name in read for which in ("c", "r")]
        return f"vs_keep_{number}({', '.join([*arrays, self._kept(kind, step.result)])});"

    def _lines(self, step: Step, sources: list[Stored], target: Stored) -> list[str]:
        """Returns the loop that keeps the lines of an average, an addition or a ReLU of steps."""
        node, plan = step.head, self.plan
        assert node is not None
        share, spare = literal(share_of(plan, step)), literal(spare_of_lanes(plan.size_of(step.result)))
        loops, at, indent = nest(target.place.shape)
        to = target.place.at(at)
        index = to[to.index("[") + 1 : -1]
        low, tail = f"out[{index}]{offset(-target.zero)}", f"spread[{index}], {spare}"
        line = f"line + 4 * ({index})"
        if isinstance(node, AveragePool):
            source = sources[0].grid
            assert source is not None
            error, factor = literal(of_average(step, source)), literal(factors_of(plan, step)[0][0])
            element = named(sources[0], "in").at([at[0], f"({at[1]} * {node.stride[0]} + y)", f"({at[2]} * {node.stride[1]} + x)"])
            lines = [
                "int32_t sum = 0, more = 0;",
                f"for (int y = 0; y < {node.kernel[0]}; y++)",
                f"    for (int x = 0; x < {node.kernel[1]}; x++) {{",
                f"        sum += {element}{offset(-sources[0].zero)};",
                f"        more += {width_of(element)};",
                "    }",
                f"vs_sum_lines({line}, sum, sum + more, {factor}, 0.0f, {error}, {low}, spread[{index}], {share}, {spare}, "
                f"{int(step.has_relu)});",
            ]
            return inside(loops, indent, lines)
        if isinstance(node, Add):
            moved = literal(of_addition(step, [one.grid for one in sources if one.grid is not None]))
            factors = [literal(one[0]) for one in factors_of(plan, step)]
            half = f"(0.5f + {moved}) * {literal(UP)}"
        else:
            assert isinstance(node, Relu)
            factors, half = ["1.0f"], "0.0f"
        ends = []
        for i, (one, factor) in enumerate(zip(sources, factors, strict=True)):
            element = named(one, f"in{'' if i == 0 else '2'}").at(at)
            steps = [f"(float)({element}{more}{offset(-one.zero)})" for more in ("", f" + {width_of(element)}")]
            ends.append([f"{value} * {factor}" if isinstance(node, Add) else value for value in steps])
        declared = [f"const float l{i} = {pair[0]}, h{i} = {pair[1]};" for i, pair in enumerate(ends)]
        least, most = (" + ".join(f"{end}{i}" for i in range(len(ends))) for end in "lh")
        size = " + ".join(f"(-l{i} > h{i} ? -l{i} : h{i})" for i in range(len(ends)))
        relu = int(step.has_relu or isinstance(node, Relu))
        lines = [
            *declared,
            f"const float size = {size};",
            f"vs_lines({line}, {least}, {most}, size, 1.0f, 0.0f, {half}, size * {share}, {low}, {tail}, {relu});",
        ]
        return inside(loops, indent, lines)

    def _windows(self, step: Step, node: MaxPool, source: Stored, target: Stored) -> list[str]:
        """Returns the loop that keeps of each window the element with the highest lower end, and the highest end."""
        _, height, width = source.place.shape
        (kh, kw), (sy, sx), (top, left) = node.kernel, node.stride, node.pads[:2]
        element, to = named(source, "in").at(["c", "y", "x"]), target.place.at(["c", "i", "j"])
        at, index = element[element.index("[") + 1 : -1], to[to.index("[") + 1 : -1]
        spare, cost = literal(spare_of_lanes(self.plan.size_of(step.result))), literal(of_window(self.plan, step))
        return [
            f"for (int i = 0; i < {node.shape[1]}; i++)",
            f"    for (int j = 0; j < {node.shape[2]}; j++)",
            f"        for (int c = 0; c < {node.shape[0]}; c++) {{",
            f"            const int y0 = i * {sy}{offset(-top)}, x0 = j * {sx}{offset(-left)};",
            f"            float *const to = best + 3 * ({index});",
            "            int32_t low = -256, high = -256, rest = -256, found = 0;",
            f"            for (int y = y0 < 0 ? 0 : y0; y < y0 + {kh} && y < {height}; y++)",
            f"                for (int x = x0 < 0 ? 0 : x0; x < x0 + {kw} && x < {width}; x++) {{",
            f"                    const int32_t one = {element}, other = {element} + {width_of(element)};",
            "                    if (one > low) {",
            "                        rest = high > rest ? high : rest;",
            "                        low = one;",
            f"                        found = {at};",
            "                    } else {",
            "                        rest = other > rest ? other : rest;",
            "                    }",
            "                    high = other > high ? other : high;",
            "                }",
            "            to[0] = low >= rest ? -1.0f - (float)found : 1.0f + (float)found;",
            f"            to[1] = (float)(high{offset(-source.zero)});",
            f"            to[1] += VS_MAGNITUDE(to[1]) * {spare};",
            f"            to[2] = {cost};",
            "        }",
        ]


def _rest(place: Place) -> tuple[tuple[int, ...], int, tuple[int, ...], int]:
    return place.shape, place.origin, place.steps, place.size
