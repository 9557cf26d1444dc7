"""The networks in C that certify the input at hand: what writes each, and what simulates it to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vsparse.artifact.forms import INT8_C, SEQUENTIAL, DeployedForm
from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_int8.emit import Int8Source, int8_prefix
from vsparse.stages.export.c_live.backward_simulation import simulate_budget
from vsparse.stages.export.c_live.constants import require_live_form
from vsparse.stages.export.c_live.emit import emit_live_c
from vsparse.stages.export.c_live.int8_backward_simulation import simulate_budget_int8
from vsparse.stages.export.c_live.int8_constants import require_live_int8
from vsparse.stages.export.c_live.int8_emit import emit_live_int8_c
from vsparse.stages.export.c_live.int8_plan import absence_of_second
from vsparse.stages.export.c_live.int8_simulation import simulate_radius_int8
from vsparse.stages.export.c_live.simulation import Verdicts, simulate_radius
from vsparse.stages.export.c_source.emit import CSource, emit_c
from vsparse.stages.export.c_source.text import CMemory

_Range = tuple[float, float]


@dataclass(frozen=True)
class LiveForm:
    """One deployed form in C: its functions begin with `prefix`; `certify` and `radius` simulate them.

    `require` raises InputError for a network and data range without a live certificate, `plain` writes the C without one. `emit` is told
    whether a second tier is asked for and `certify` how many backward passes it may take; `absence` says why a network has none.
    """

    form: DeployedForm
    prefix: str
    require: Callable[[Graph, _Range], None]
    plain: Callable[[Graph], CSource | Int8Source]
    emit: Callable[[Graph, _Range, bool], CSource | Int8Source]
    certify: Callable[[Graph, NDArray[Any], float, int, _Range], Verdicts]
    radius: Callable[[Graph, NDArray[Any], _Range], NDArray[Any]]
    absence: Callable[[Graph, _Range], str]


FLOAT = LiveForm(
    SEQUENTIAL,
    DEFAULT_PREFIX,
    require_live_form,
    emit_c,
    lambda graph, data_range, second: emit_live_c(graph, data_range=data_range, second=second),
    simulate_budget,
    simulate_radius,
    lambda _graph, _range: "",
)
INTEGER = LiveForm(
    INT8_C,
    int8_prefix(DEFAULT_PREFIX),
    require_live_int8,
    emit_int8_c,
    lambda graph, data_range, second: emit_live_int8_c(graph, data_range=data_range, second=second),
    simulate_budget_int8,
    simulate_radius_int8,
    absence_of_second,
)
LIVE_FORMS: tuple[LiveForm, ...] = (FLOAT, INTEGER)


def live_form_of(graph: Graph) -> LiveForm:
    """Returns the form that a network is deployed in as C: with integers where it is quantised."""
    return INTEGER if graph.integers else FLOAT


def memory_of(source: CSource | Int8Source) -> CMemory:
    """Returns what the text without vectors takes."""
    return source.memory if isinstance(source, Int8Source) else source.scalar


def live_form_named(name: str) -> LiveForm:
    """Returns a form by its name in choice.json, or its label there; InputError for one that certifies nothing by itself."""
    found = next((one for one in LIVE_FORMS if name in (one.form.name, one.form.label)), None)
    if found is None:
        names = " or ".join(f'"{one.form.name}"' for one in LIVE_FORMS)
        raise InputError(f'"{name:.40}" is no form in C that certifies by itself; give {names}')
    return found
