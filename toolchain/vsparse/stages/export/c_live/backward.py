"""The second tier in C: an interval pass that keeps what backward passes need, and such a pass (docs/numerics.md, section 16)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Node, Relu
from vsparse.stages.export.c_live.backward_layers import VS_PART, BackwardLayers
from vsparse.stages.export.c_live.backward_plan import (
    ONE_ROUNDING,
    BackwardPlan,
    cost_of,
    of_constant,
    of_end,
    of_pool,
    plan_of,
    spare_of,
    total_of,
)
from vsparse.stages.export.c_live.constants import ENLARGE, FLOOR, LOWER
from vsparse.stages.export.c_live.program import LiveText, add_spread
from vsparse.stages.export.c_source.arena import Arena, Lifetime
from vsparse.stages.export.c_source.layers import LayerKernels
from vsparse.stages.export.c_source.literals import comment, float_literal
from vsparse.stages.export.c_source.operators import constant_place, emit_average_pool, emit_nest
from vsparse.stages.export.c_source.place import Place, plain
from vsparse.stages.export.c_source.program import Program
from vsparse.stages.export.c_source.texts import Call


class TracedText(LiveText):
    """The statements of the interval pass, and between them those that keep, where there is a place to keep it in."""

    def _build(self, network: int) -> None:
        self.plan = plan_of(self.graph)
        self._passed = {node.name for node in self.plan.walk}
        self.magnitudes = 0
        self._written: set[str] = set()
        super()._build(network)
        left = set(self.plan.offsets) - self._written - {"margins"}
        assert not left, f"an interval pass that does not keep {left} would leave its charges out"

    def _kept(self, kind: str, name: str) -> str:
        self._written.add(f"{kind} {name}")
        return f"kept + {self.plan.offsets[f'{kind} {name}']}"

    def _operator(self, step: int, node: Node) -> None:
        """Adds an operator, and in front of its statements, while all that it reads is there, those of its cost."""
        program, own = self.program, None
        if node.name in self._passed and not isinstance(node, Relu | MaxPool):
            program.begin(2 * step, "")
            self._cost(node)
            own = program.operators.pop(2 * step)
        super()._operator(step, node)
        if own is not None:
            begun = program.operators[2 * step if 2 * step in program.operators else 2 * step + 1]
            begun.statements[:0] = own.statements
            for name, size in own.scratches.items():
                begun.scratches[name] = max(begun.scratches.get(name, 0), size)

    def _cost(self, node: Node) -> None:
        """Adds what a unit of |coefficient| of the operator's result costs, from the magnitudes of what it reads."""
        program, graph = self.program, self.graph
        program.do("if (kept) {", f"float *const cost = {self._kept('cost', node.name)};")
        cost, read = plain("cost", node.shape), [(self.centres[name], self.radii[name]) for name in node.inputs]
        floor, once = float_literal(FLOOR), float_literal(ONE_ROUNDING)
        if isinstance(node, Conv | Gemm | AveragePool):
            (centre, radius), size = read[0], read[0][0].size
            self.magnitudes = max(self.magnitudes, size, self.extents.get(self.lives.roots[node.inputs[0]], 0))
            program.do(f"float *const m = kept + {self.plan.floats};", f"vs_magnitudes({centre.array}, {radius.array}, {size}, m);")
            source = Place("m", centre.shape, centre.origin, centre.steps, centre.size)
            own = Call(program, graph, node, [source], cost, False)
            if isinstance(node, AveragePool):
                emit_average_pool(program, graph, node, source, cost, False)
            else:
                add_spread(program.tables, graph, node, self.gemms.get(node.name))
                program.magnitudes = True
                self._sum(own)
                program.magnitudes = False
            factor, constant = (float_literal(float(value)) for value in cost_of(graph, node))
            program.do(f"vs_charge(cost, {node.size}, {factor}, {constant});")
        else:
            assert isinstance(node, Add | AddConstant | MulConstant), node
            places = [place for pair in read for place in pair]
            given = [] if isinstance(node, Add) else [constant_place(program, graph, node)]

            def body(*at: str) -> list[str]:
                m = f"(VS_MAGNITUDE({at[0]}) + {at[1]})"
                if isinstance(node, Add):
                    return [f"{at[4]} = ({m} + (VS_MAGNITUDE({at[2]}) + {at[3]})) * {once} + {floor};"]
                if isinstance(node, AddConstant):
                    return [f"{at[3]} = {m} * {once} + VS_MAGNITUDE({at[2]}) * {float_literal(float(of_constant(node)))} + {floor};"]
                return [f"{at[3]} = {m} * (VS_MAGNITUDE({at[2]}) * {float_literal(2 * ONE_ROUNDING)}) + {floor};"]

            emit_nest(program, node.shape, [*places, *given, cost], body)
        program.do("}")

    def _max_pool(self, node: MaxPool, sources: list[Place], targets: tuple[Place, Place]) -> None:
        if node.name in self._passed:
            self._kept_pool(node, sources)
        super()._max_pool(node, sources, targets)

    def _kept_pool(self, node: MaxPool, sources: list[Place]) -> None:
        """Adds what keeps of each window the element with the highest lower end, and the highest end."""
        _, height, width = self.graph.shape_of(node.inputs[0])
        (kh, kw), (sy, sx), (top, left) = node.kernel, node.stride, node.pads[:2]
        centre, radius = (place.at(["c", "y", "x"]) for place in sources)
        growth, share = (float_literal(float(value)) for value in (of_end(node.size), of_pool(self.graph, node)))
        best, tops, cost = (self._kept(kind, node.name) for kind in ("best", "top", "cost"))
        self.program.do(
            "if (kept) {",
            f"float *best = {best}, *top = {tops}, *cost = {cost};",
            f"for (int c = 0; c < {node.shape[0]}; c++)",
            f"    for (int i = 0; i < {node.shape[1]}; i++)",
            f"        for (int j = 0; j < {node.shape[2]}; j++) {{",
            f"            const int y0 = i * {sy} - {top}, x0 = j * {sx} - {left};",
            "            float low = -FLT_MAX, high = -FLT_MAX, rest = -FLT_MAX, m = 0.0f;",
            "            int at = -1;",
            f"            for (int y = y0 < 0 ? 0 : y0; y < y0 + {kh} && y < {height}; y++)",
            f"                for (int x = x0 < 0 ? 0 : x0; x < x0 + {kw} && x < {width}; x++) {{",
            f"                    const float lowest = {centre} - {radius}, other = {centre} + {radius};",
            f"                    const float one = {'lowest < 0.0f ? 0.0f : lowest' if self.plan.is_relu(node.inputs[0]) else 'lowest'};",
            "                    if (at < 0 || one > low) {",
            "                        rest = high > rest ? high : rest;",
            "                        low = one;",
            f"                        m = VS_MAGNITUDE({centre}) + {radius};",
            f"                        at = (c * {height} + y) * {width} + x;",
            "                    } else {",
            "                        rest = other > rest ? other : rest;",
            "                    }",
            "                    high = other > high ? other : high;",
            "                }",
            "            *best++ = low >= rest ? -1.0f - (float)at : (float)at;",
            f"            *top++ = high + VS_MAGNITUDE(high) * {growth} + {float_literal(FLOOR)};",
            f"            *cost++ = m * {share} + {float_literal(FLOOR)};",
            "        }",
            "}",
        )

    def _settle(self, name: str, relu: bool, more: float) -> None:
        centre, radius = self.centres[name], self.radii[name]
        node = self.lives.relu.get(name, name)
        if relu and node in self._passed:
            spare = float_literal(float(spare_of(self.plan.size_of(node))))
            self._each(centre, radius, "vs_slopes", f"{float_literal(more)}, {spare}", ("slope", "offset"), node)
        super()._settle(name, relu, more)
        if node in self.plan.ends:
            self._each(centre, radius, "vs_keep", float_literal(float(of_end(self.plan.size_of(node)))), ("c", "r"), node)
        if node in self.plan.joins:
            self._each(centre, radius, "vs_share", "", ("join",), node)

    def _each(self, centre: Place, radius: Place, function: str, given: str, kept: tuple[str, ...], name: str) -> None:
        """Adds a call for all elements, row by row where there are margins."""
        to = [self._kept(kind, name) for kind in kept]
        given = f"{given}, " if given else ""
        if centre.is_plain:
            size = prod(centre.shape)
            self.program.do("if (kept)", f"    {function}({centre.array}, {radius.array}, {size}, {given}{', '.join(to)});")
            return
        channels, height, width = centre.shape
        at = [f"{place.array} + {place.origin} + i * {place.steps[0]} + j * {place.steps[1]}" for place in (centre, radius)]
        rows = ", ".join(f"{one} + (i * {height} + j) * {width}" for one in to)
        self.program.do(
            "if (kept)",
            f"    for (int i = 0; i < {channels}; i++)",
            f"        for (int j = 0; j < {height}; j++)",
            f"            {function}({at[0]}, {at[1]}, {width}, {given}{rows});",
        )


@dataclass
class _Coefficients:
    """An array of coefficients: its floats, and from which step of a pass to which it is needed."""

    size: int
    first: int
    last: int


class BackwardText:
    """The function `vs_backward` of one text."""

    def __init__(self, graph: Graph, inference: Program, kernels: Mapping[str, LayerKernels], plan: BackwardPlan) -> None:
        self.graph, self.plan = graph, plan
        self.program = Program(inference.tables, inference.unit, kernels=inference.kernels, functions=inference.functions)
        self.layers = BackwardLayers(self.program, graph, kernels)
        self.arrays: dict[str, str] = {}
        self.lives: dict[str, _Coefficients] = {}
        self._build()

    def _build(self) -> None:
        program, plan = self.program, self.plan
        output = plan.key(self.graph.output)
        program.begin(0, "the row")
        start, size = self._array(output, 0), plan.size_of(output)
        program.do(f"memset({start}, 0, {size} * sizeof(float));", f"{start}[label] = 1.0f;", f"{start}[other] = -1.0f;")
        for step, node in enumerate(plan.walk, 1):
            program.begin(step, f"{type(node).__name__} {comment(node.name)}")
            self._step(step, node, first=step == 1 and node.name == output)
        end, passed = len(plan.walk) + 1, {node.name for node in plan.walk}
        program.begin(end, "the intervals")
        self.last = [name for name in plan.ends if name in self.arrays and name not in passed]
        for name in self.last:
            self.lives[self.arrays[name]].last = end
        program.lives += [_lifetime(name, one) for name, one in self.lives.items()]

    def _array(self, name: str, step: int) -> str:
        array = f"a{len(self.lives)}"
        self.arrays[name] = array
        self.lives[array] = _Coefficients(self.plan.size_of(name), step, step)
        return array

    def _kept(self, kind: str, name: str) -> str:
        return f"kept + {self.plan.offsets[f'{kind} {name}']}"

    def _step(self, step: int, node: Node, first: bool) -> None:
        a, size, program = self.arrays[node.name], node.size, self.program
        self.lives[a].last = step
        if isinstance(node, Relu):
            slope, offset = (self._kept(kind, node.name) for kind in ("slope", "offset"))
            program.do(f"{VS_PART}(-vs_relu_back({a}, {slope}, {offset}, {size}));", "VS_STORED;")
            self._pass_on(step, node.inputs[0], a)
            return
        program.do(f"{VS_PART}(-vs_cost({a}, {self._kept('cost', node.name)}, {size}));")
        if isinstance(node, Conv | Gemm):
            self.layers.bias(node, a)
            self._made(step, node, lambda to: self.layers.back(node, a, to, first))
        elif isinstance(node, MaxPool):
            best, top = (self._kept(kind, node.name) for kind in ("best", "top"))
            program.do(f"{VS_PART}(vs_tops({a}, {best}, {top}, {size}));")
            elements = self.plan.size_of(node.inputs[0])
            self._made(step, node, lambda to: program.do(f"vs_pool_back({a}, {best}, {size}, {elements}, {to});"))
        elif isinstance(node, AveragePool):
            self._made(step, node, lambda to: self.layers.average(node, a, to))
        else:
            assert isinstance(node, Add | AddConstant | MulConstant)
            if not isinstance(node, Add):
                self._constant(node, a)
            for name in node.inputs:
                self._pass_on(step, name, a)

    def _constant(self, node: AddConstant | MulConstant, a: str) -> None:
        """Adds the part of an added constant, or multiplies coefficients by one, in place."""
        program, place = self.program, constant_place(self.program, self.graph, node)
        if isinstance(node, MulConstant):
            emit_nest(program, node.shape, [plain(a, node.shape), place], lambda to, value: [f"{to} *= {value};"])
            program.do("VS_STORED;")
            return
        program.scratch("constant", node.size)
        emit_nest(program, node.shape, [plain("constant", node.shape), place], lambda to, value: [f"{to} = {value};"])
        program.do(f"{VS_PART}(vs_product({a}, constant, {node.size}));")

    def _made(self, step: int, node: Node, make: object) -> None:
        """Adds what makes the coefficients of an operator's input, and their sum with those that are there."""
        assert callable(make)
        name = self.plan.key(node.inputs[0])
        if name not in self.arrays:
            make(self._array(name, step))
            return
        self.program.scratch("more", self.plan.size_of(name))
        make("more")
        self._joined(step, name, "more")

    def _pass_on(self, step: int, name: str, a: str) -> None:
        """Adds what gives an operator's coefficients to an input as they are: the same array where nothing else reads either."""
        name, size = self.plan.key(name), self.plan.size_of(self.plan.key(name))
        node = self.plan.walk[step - 1]
        if name in self.arrays:
            self._joined(step, name, a)
        elif len(node.inputs) == 1:
            self.arrays[name] = a
        else:
            self.program.do(f"memcpy({self._array(name, step)}, {a}, {size} * sizeof(float));")

    def _joined(self, step: int, name: str, more: str) -> None:
        to = self.arrays[name]
        self.lives[to].last = step
        self.program.do(f"{VS_PART}(-vs_join({to}, {more}, {self._kept('join', name)}, {self.plan.size_of(name)}));")

    def text(self, arena: Arena) -> list[str]:
        """Returns the function."""
        plan, whole = self.plan, self.program.body(arena)
        (factor, constant), marks = total_of(plan), [i for i, line in enumerate(whole) if line.startswith("    /* ")]
        head = whole[: marks[plan.head + 1]]
        rest = whole[marks[plan.head + 1] : marks[-1]]
        return [
            "/* Returns a lower bound of the logit of a label minus that of another class: over the last activation, or over the input. */",
            "VS_ONCE static float vs_backward(float *arena, const float *kept, int label, int other, int whole)",
            "{",
            "    float part, sum = 0.0f, size = 0.0f;",
            *head,
            "    if (!whole) {",
            self._end(plan.stop, arena),
            "    } else {",
            *[f"    {line}" for line in rest],
            *[self._end(name, arena) for name in self.last],
            "    }",
            f"    sum -= (size * {float_literal(float(factor))} + {float_literal(float(constant))}) * {float_literal(ENLARGE)};",
            f"    sum -= VS_MAGNITUDE(sum) * {float_literal(LOWER)};",
            "    return sum >= -FLT_MAX && sum <= FLT_MAX ? sum : -FLT_MAX;",
            "}",
        ]

    def _end(self, name: str, arena: Arena) -> str:
        at, size = arena.offsets[self.arrays[name]], self.plan.size_of(name)
        return f"        {VS_PART}(vs_least(arena + {at}, {self._kept('c', name)}, {self._kept('r', name)}, {size}));"


def _lifetime(name: str, one: _Coefficients) -> Lifetime:
    return Lifetime(name, one.size, 2 * one.first, 2 * one.last + 1)


# What an interval pass takes that keeps what backward passes need.
_COST = "one interval pass (that of {prefix}_certify and one more multiplication with every weight)"


def budget_declarations(prefix: str, arena: str, cost: str = _COST) -> str:
    """Returns what a header declares of the second tier; `arena` is the C expression of the floats that an arena must have.

    `cost` says what its interval pass takes.
    """
    capitals, worst = prefix.upper(), cost.format(prefix=prefix)
    return f"""
#define {capitals}_BACKWARD_ARENA_FLOATS {arena}

/* As {prefix}_certify, and where that does not certify, with a second tier: where at most `budget` margins are open over the
   intervals of the last activation, each of them is bounded by one linear pass back to the input. At worst it takes one inference,
   {worst} and
   `budget` backward passes, never more than {capitals}_CLASSES - 1; with a budget of 0 or less it is {prefix}_certify.
   Returns 0, or -1 where `floats` is below {capitals}_BACKWARD_ARENA_FLOATS. */
int {prefix}_certify_budget_in(float *arena, size_t floats, const float *input, float epsilon, int budget,
                               struct {prefix}_verdict *verdict);

#ifndef {capitals}_NO_STATIC_ARENA
int {prefix}_certify_budget(const float *input, float epsilon, int budget, struct {prefix}_verdict *verdict);
#endif
"""
