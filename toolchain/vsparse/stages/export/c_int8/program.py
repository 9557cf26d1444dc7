"""The int8 C as it grows: tables, functions, and the statements of each step; and how the result of an operator is rounded and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, prod

import numpy as np

from vsparse.graph.ir import AddConstant, Graph, MulConstant, Relu
from vsparse.stages.export.c_int8.constants import Int8Tables
from vsparse.stages.export.c_int8.fusion import Step
from vsparse.stages.export.c_int8.place import Stored
from vsparse.stages.export.c_source.literals import float_literal
from vsparse.stages.export.c_source.place import Place

# Up to here the sum with 1.5 · 2^23 is rounded to an integer.
EXACT = 2.0**22


@dataclass
class Int8Program:
    """What has been emitted so far; `stored` says where each activation lies, `listed` of each sum whether it lists its weights."""

    graph: Graph
    stored: dict[str, Stored]
    constants: Int8Tables = field(default_factory=Int8Tables)
    functions: list[str] = field(default_factory=list)
    statements: dict[int, list[str]] = field(default_factory=dict)
    titles: dict[int, str] = field(default_factory=dict)
    listed: list[bool] = field(default_factory=list)
    _step: int = 0
    _tables: dict[str, str] = field(default_factory=dict)

    def begin(self, step: int, title: str) -> None:
        """Begins a step; a comment says what it is."""
        self._step = step
        self.titles[step], self.statements[step] = title, []

    def do(self, *lines: str) -> None:
        """Adds statements to the step."""
        self.statements[self._step] += lines

    def table_of(self, node: str) -> str:
        """Returns the prefix of the tables of one operator; names of the graph never become identifiers."""
        return self._tables.setdefault(node, f"n{len(self._tables) + 1}")

    def function(self, kind: str, source: Stored, target: Stored, body: Sequence[str]) -> None:
        """Adds a function of one step, from the array that it reads to the one that it writes, and its call."""
        name = f"vs_{kind}_{len(self.functions)}"
        text = [f"VS_ONCE static void {name}(const {source.kind} *restrict in, {target.kind} *restrict out)", "{"]
        self.functions.append("\n".join([*text, *[line if line.startswith("#") else f"    {line}" for line in body], "}"]))
        self.do(f"{name}({source.place.array}, {target.place.array});")

    def constant(self, node: AddConstant | MulConstant) -> Place:
        """Returns the place of a constant, broadcast to the shape of the operator; adds its table once."""
        name, value, shape = f"{self.table_of(node.name)}_constant", self.graph.params[node.constant], node.shape
        if f"{node.name} constant" not in self._tables:
            self._tables[f"{node.name} constant"] = name
            self.constants.floats(name, np.asarray(value, np.float32).reshape(-1))
        padded = (1,) * (len(shape) - value.ndim) + value.shape
        steps = tuple(0 if size == 1 else prod(padded[d + 1 :]) for d, size in enumerate(padded))
        return Place(name, shape, 0, steps, value.size)


def load(source: Stored, indexes: Sequence[str]) -> str:
    """Returns the expression of an element as a float32 number; of one on a grid the product of its step and its scale."""
    at = source.place.at(indexes)
    return at if source.grid is None else f"{steps_at(source, indexes)} * {float_literal(source.grid.scale)}"


def steps_at(source: Stored, indexes: Sequence[str]) -> str:
    """Returns the expression of the step q − z of an element, as a float."""
    return f"(float)({source.place.at(indexes)}{offset(-source.zero)})"


def offset(value: int) -> str:
    """Returns a number as a summand."""
    return f" + {value}" if value > 0 else f" - {-value}" if value else ""


def store(
    program: Int8Program,
    step: Step,
    value: str,
    target: Stored,
    indexes: Sequence[str],
    scaled: bool = False,
    watched: bool = False,
    most: float = inf,
) -> list[str]:
    """Returns the statements that apply a step's chain to a float `value` and store it; `scaled`: it is in units of the target's grid.

    `most` bounds the magnitude of a scaled value: where it is small, integers are clamped, which takes fewer instructions.
    A NaN passes through ReLU, so that it stays visible; it has no step on a grid, so that a `watched` one is passed by to the logits.
    """
    at = target.place.at(indexes)
    if scaled:
        return [f"{at} = {_rounded(step, value, True, most)};"]
    lines = [f"float v = {value};"]
    for node in step.chain:
        if isinstance(node, Relu):
            lines.append("v = v < 0.0f ? 0.0f : v;")
        elif isinstance(node, AddConstant | MulConstant):
            lines.append(f"v = v {'+' if isinstance(node, AddConstant) else '*'} {program.constant(node).at(indexes)};")
    if step.grid is None:
        return [f"{at} = {value};"] if len(lines) == 1 else [*lines, f"{at} = v;"]
    inverse = float_literal(float(np.float32(1) / np.float32(step.grid.scale)))
    watch = ["nan |= vs_is_nan(v);"] if watched else []
    return [*lines, *watch, f"{at} = {_rounded(step, f'v * {inverse}', False)};"]


def _rounded(step: Step, value: str, chain: bool, most: float = inf) -> str:
    assert step.grid is not None
    first, last = step.grid.steps
    low = max(first, 0) if chain and step.has_relu else first
    if most <= EXACT:
        return f"vs_near({value}, {low - first - 128}, {first})"
    return f"vs_step({value}, {float_literal(low)}, {float_literal(last)}, {first})"
