"""The live certificate in C: interval bounds of the frame at hand, computed by the device itself (docs/numerics.md, section 14)."""

from vsparse.stages.export.c_live.backward_simulation import simulate_budget
from vsparse.stages.export.c_live.compiled import CompiledLive
from vsparse.stages.export.c_live.constants import require_live_form
from vsparse.stages.export.c_live.emit import UNIT_RANGE, emit_live_c
from vsparse.stages.export.c_live.int8_constants import require_live_int8
from vsparse.stages.export.c_live.int8_emit import emit_live_int8_c
from vsparse.stages.export.c_live.int8_simulation import simulate_live_int8
from vsparse.stages.export.c_live.simulation import Verdicts, simulate_live, simulate_radius

__all__ = [
    "UNIT_RANGE",
    "CompiledLive",
    "Verdicts",
    "emit_live_c",
    "emit_live_int8_c",
    "require_live_form",
    "require_live_int8",
    "simulate_budget",
    "simulate_live",
    "simulate_live_int8",
    "simulate_radius",
]
