"""model.int8.c with the second tier: behind the first tier's functions those of backward passes, and NAME_int8_certify_budget."""

from __future__ import annotations

from dataclasses import replace

from vsparse.stages.export.c_int8.program import Int8Program
from vsparse.stages.export.c_live.backward import budget_declarations
from vsparse.stages.export.c_live.backward_plan import UP
from vsparse.stages.export.c_live.budget import kernel
from vsparse.stages.export.c_live.int8_backward import IntegerBackward
from vsparse.stages.export.c_live.int8_constants import STEP
from vsparse.stages.export.c_live.int8_plan import FEW, TINY
from vsparse.stages.export.c_live.int8_traced import TracedSteps
from vsparse.stages.export.c_live.interface import declarations
from vsparse.stages.export.c_source.literals import comment, float_literal
from vsparse.stages.export.c_source.text import Addition

# What an interval pass takes that keeps what backward passes need.
_COST = "one interval pass (that of {prefix}_certify, which keeps two lines for each unit)"


def with_second_int8(
    first: Addition, live: TracedSteps, program: Int8Program, prefix: str, floats: int, data_range: tuple[float, float]
) -> Addition:
    """Returns the addition of the first tier with the second behind it; `floats` are those that the first tier and inference need."""
    backward, capitals = IntegerBackward(program, live.plan), prefix.upper()
    kept = max(first.arenas["int8"], backward.arena.size)
    text = [*first.texts["int8"], f"#define VS_KEPT_AT {kept}", f"#define VS_MARGINS_AT {live.plan.offsets['margins']}", *backward.text()]
    constants = {"VS_UP": UP, "VS_FEW": FEW, "VS_TINY": TINY, "VS_STEP": float(STEP)}
    common = [first.common, *[f"#define {name} {float_literal(value)}" for name, value in constants.items()]]
    return replace(
        first,
        declarations=lambda sizes: declarations(prefix, str(floats), data_range) + budget_declarations(prefix, sizes, _COST),
        common="\n".join([*common, kernel("lanes"), kernel("backward8")]),
        texts={"int8": text},
        entry=f"{first.entry}\n{kernel('budget').replace('PREFIX', capitals).replace('prefix', prefix)}",
        arenas={"int8": kept + live.plan.floats},
        static_floats="PREFIX_BACKWARD_ARENA_FLOATS",
    )


def without_second(first: Addition, prefix: str, absence: str) -> Addition:
    """Returns the addition of the first tier with a NAME_int8_certify_budget that is NAME_int8_certify; the header says why."""
    capitals = prefix.upper()
    given = "const float *input, float epsilon, int budget"

    def declared(sizes: str) -> str:
        return f"""{first.declarations(sizes)}
#define {capitals}_BACKWARD_ARENA_FLOATS {capitals}_LIVE_ARENA_FLOATS

/* This network has no second tier, and whatever the budget this is {prefix}_certify:
   {comment(absence)} */
int {prefix}_certify_budget_in(float *arena, size_t floats, {given}, struct {prefix}_verdict *verdict);

#ifndef {capitals}_NO_STATIC_ARENA
int {prefix}_certify_budget({given}, struct {prefix}_verdict *verdict);
#endif
"""

    entry = f"""{first.entry}
int {prefix}_certify_budget_in(float *arena, size_t floats, {given}, struct {prefix}_verdict *verdict)
{{
    (void)budget;
    return {prefix}_certify_in(arena, floats, input, epsilon, verdict);
}}

#ifndef {capitals}_NO_STATIC_ARENA
int {prefix}_certify_budget({given}, struct {prefix}_verdict *verdict)
{{
    (void)budget;
    return {prefix}_certify(input, epsilon, verdict);
}}
#endif
"""
    return replace(first, declarations=declared, entry=entry)
