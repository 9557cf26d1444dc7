"""One text of a network as it grows: its operators, the kernels that they call, and what they need of the arena."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vsparse.stages.export.c_source.arena import Arena, Lifetime, plan_arena
from vsparse.stages.export.c_source.tables import Tables
from vsparse.stages.export.c_source.tiles import MAGNITUDES, PASSING, ROWS

_WORD = re.compile(r"[a-z]\w*")
# Scratch arrays that an operator copies its input to before it writes anything else.
COPIES = ("planes", "padded")


@dataclass
class Operator:
    """One operator: what it is, the statements that execute it, and the scratch arrays that it needs while it runs."""

    title: str
    statements: list[str] = field(default_factory=list)
    scratches: dict[str, int] = field(default_factory=dict)


@dataclass
class Program:
    """What has been emitted so far. `unit` floats are what offsets in the arena are multiples of.

    With `magnitudes`, sums that are added multiply the magnitudes of weights, and start with the tables `spread` in place of `bias`; with
    `passing`, those of fully connected layers with vectors pass inputs of zero by.
    `lives` are the arrays in the arena, in half steps: operator s may copy its input in half step 2s, and computes in 2s + 1.
    """

    tables: Tables
    unit: int
    lives: list[Lifetime] = field(default_factory=list)
    operators: dict[int, Operator] = field(default_factory=dict)
    kernels: list[str] = field(default_factory=list)
    functions: dict[str, str] = field(default_factory=dict)
    magnitudes: bool = False
    passing: bool = False
    _step: int = 0

    def begin(self, step: int, title: str) -> None:
        """Begins the operator of a step; a comment says what it is."""
        self._step = step
        self.operators[step] = Operator(title)

    def do(self, *statements: str) -> None:
        """Adds statements to the operator."""
        self.operators[self._step].statements += statements

    def use(self, *kernels: str) -> None:
        """Adds kernels to the file, once each."""
        self.kernels += [name for name in kernels if name not in self.kernels]

    def call(self, kernel: str) -> str:
        """Adds a kernel that sums to the file, and returns the name of its function."""
        name = f"{kernel}{PASSING}" if self.passing and kernel in ROWS else kernel
        name = f"{name}{MAGNITUDES}" if self.magnitudes else name
        self.use(name)
        return f"vs_{name}"

    def start(self, table: str) -> str:
        """Returns the name of the table of what the sums of a layer start with."""
        return f"{table}_spread" if self.magnitudes else f"{table}_bias"

    def weight(self, value: str) -> str:
        """Returns the expression of what sums multiply, by that of a weight."""
        return f"VS_MAGNITUDE({value})" if self.magnitudes else value

    def function(self, kind: str, parameters: str, body: list[str]) -> str:
        """Adds a static function, once for each text, and returns its name."""
        text = "\n".join([f"({parameters})", "{", *[f"    {line}" for line in body], "}"])
        if text not in self.functions:
            self.functions[text] = f"vs_{kind}_{len(self.functions)}"
        return self.functions[text]

    def scratch(self, name: str, floats: int) -> None:
        """Asks for an array of at least that many floats while the operator runs."""
        scratches = self.operators[self._step].scratches
        scratches[name] = max(scratches.get(name, 0), floats)

    def arena(self) -> Arena:
        """Returns where everything lies."""
        scratches = [
            Lifetime(f"{name} {step}", size, 2 * step + (name not in COPIES), 2 * step + 1)
            for step, operator in self.operators.items()
            for name, size in operator.scratches.items()
        ]
        return plan_arena([*self.lives, *scratches], self.unit)

    def definitions(self) -> str:
        """Returns the static functions."""
        return "\n\n".join(f"static void {name}{text}" for text, name in self.functions.items())

    def body(self, arena: Arena) -> list[str]:
        """Returns the statements of the whole network, each array a pointer into `arena`.

        `restrict` tells a compiler which arrays of an operator never overlap. Those of different operators may, and the input and the
        result of one that copies its input before it writes anything else.
        """
        lines = []
        sizes = {one.name: one.size for one in self.lives}
        for step, operator in self.operators.items():
            offsets = {one.name: arena.offsets[one.name] for one in self.lives}
            offsets |= {name: arena.offsets[f"{name} {step}"] for name in operator.scratches}
            used = set(_WORD.findall("\n".join(operator.statements)))
            spans = {name: (offset, offset + {**sizes, **operator.scratches}[name]) for name, offset in offsets.items() if name in used}
            pointers = [
                f"float *{'' if _overlaps(name, spans) else 'restrict '}const {name} = arena + {start};"
                for name, (start, _) in spans.items()
            ]
            lines += [f"    /* {operator.title} */", "    {", *[f"        {line}" for line in [*pointers, *operator.statements]], "    }"]
        return lines


def _overlaps(name: str, spans: dict[str, tuple[int, int]]) -> bool:
    start, end = spans[name]
    return any(start < last and first < end for other, (first, last) in spans.items() if other != name)
