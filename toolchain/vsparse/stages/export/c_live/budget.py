"""model.c with the second tier: the first tier's functions, those of backward passes, and NAME_certify_budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vsparse.graph.ir import Graph
from vsparse.stages.export.c_live.backward import BackwardText, TracedText, budget_declarations
from vsparse.stages.export.c_live.backward_plan import HALF, ONE_ROUNDING, UP
from vsparse.stages.export.c_live.constants import FLOOR
from vsparse.stages.export.c_live.interface import declarations
from vsparse.stages.export.c_live.program import LiveText
from vsparse.stages.export.c_source.emit import Parts
from vsparse.stages.export.c_source.geometry import WIDEST, round_up
from vsparse.stages.export.c_source.literals import float_literal
from vsparse.stages.export.c_source.text import Addition

_KERNELS = Path(__file__).resolve().parent / "kernels"
# What the first tier calls: the interval pass that keeps nothing.
BOUNDS_ALONE = (
    "static int vs_bounds(float *arena, const float *input, float epsilon)",
    "{",
    "    return vs_trace(arena, input, epsilon, 0);",
    "}",
    "",
)


def signature_of(live: LiveText) -> list[str]:
    """Returns the first line of the function of the interval pass."""
    if isinstance(live, TracedText):
        return ["VS_ONCE static int vs_trace(float *arena, const float *input, float epsilon, float *kept)"]
    return ["VS_ONCE static int vs_bounds(float *arena, const float *input, float epsilon)"]


def with_second(
    graph: Graph, first: Addition, texts: Mapping[str, TracedText], parts: Parts, prefix: str, data_range: tuple[float, float]
) -> Addition:
    """Returns the addition of the first tier with the second behind it."""
    lines, arenas = {}, {}
    for name, text in texts.items():
        backward = BackwardText(graph, parts.programs[name], parts.kernels, text.plan)
        arena = backward.program.arena()
        kept = round_up(max(first.arenas[name], arena.size), WIDEST)
        arenas[name] = kept + text.plan.floats + text.magnitudes + WIDEST
        numbers = {"VS_KEPT_AT": kept, "VS_MARGINS_AT": text.plan.offsets["margins"]}
        lines[name] = [*first.texts[name], *[f"#define {key} {value}" for key, value in numbers.items()], *backward.text(arena)]
    capitals = prefix.upper()
    own = {name: max(size, parts.arenas[name].size, 1) for name, size in first.arenas.items()}
    live = f"({capitals}_VECTORS ? {own['vector']} : {own['scalar']})"
    constants = {"VS_FLOOR": FLOOR, "VS_HALF": HALF, "VS_UP": UP, "VS_ONE_ROUNDING": ONE_ROUNDING}
    common = [
        first.common,
        *[f"#define {name} {float_literal(value)}" for name, value in constants.items()],
        kernel("lanes"),
        kernel("backward"),
    ]
    return replace(
        first,
        declarations=lambda sizes: declarations(prefix, live, data_range) + budget_declarations(prefix, sizes),
        common="\n".join(common),
        texts=lines,
        entry=f"{first.entry}\n{kernel('budget').replace('PREFIX', capitals).replace('prefix', prefix)}",
        arenas=arenas,
        static_floats="PREFIX_BACKWARD_ARENA_FLOATS",
    )


def kernel(name: str) -> str:
    return (_KERNELS / f"{name}.c").read_text(encoding="utf-8")
