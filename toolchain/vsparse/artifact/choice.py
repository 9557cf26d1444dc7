"""choice.json: the table of deployed forms, and which one the build chose, and why."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from vsparse.artifact.checks import Gate
from vsparse.artifact.document import Count, Document, Fraction01, Part
from vsparse.artifact.forms import BY_NAME, INT8_C, SEQUENTIAL, DeployedForm
from vsparse.artifact.latency import Milliseconds

CHOICE = "choice.json"


def milliseconds(value: float) -> str:
    """Returns a time in ms, the shortest ones with as many digits as tell something."""
    return f"{value:.4f}" if value >= 0.01 else f"{value:.6f}"


class WeightPattern(Part):
    """The zeros among the weights of one file: what they look like, and whether the kernels that execute it save time by them.

    `density` is the fraction of the stored weights that are not zero; `pattern` says what they form, in words; `used` whether kernels
    leave zeros out, and `by` which ones, or why none does. `float_layers` names the layers of a quantised file that were
    found to stay in float32.
    """

    density: Fraction01
    pattern: str
    used: bool
    by: str
    float_layers: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out `float_layers` where none were found: other tables keep the bytes that they had before these."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "float_layers" or value}

    @property
    def told(self) -> str:
        """Who uses the zeros, or why nobody does, and which layers are in float32, in words."""
        return f"{self.by}; in float32: {', '.join(self.float_layers)}" if self.float_layers else self.by


class FormRow(Part):
    """One form: what is certified of it, what it costs on the target, and what it misses of what it must reach to be chosen.

    `points_lost` is how many percentage points less than the fp32 file it certifies (negative: more). Latencies are of the target, in ms;
    None where they were not measured there; `latency_ratio` is the median over that of the fp32 file, `speed` says so in words; a run has
    as many samples as the recipe's batch. `energy_mj` is that of one run, and `peak_bytes` the memory of its process, as the target's
    device measured them. `gates` are those that concern it. `competes` is whether it can be chosen at all, and `why_not` why it cannot.
    """

    name: str
    file: str
    contract: str
    certified_accuracy: Fraction01
    clean_accuracy: Fraction01
    points_lost: float | None
    bytes: Count | None
    latency_ms_p50: Milliseconds | None
    latency_ms_p99: Milliseconds | None
    latency_ratio: Annotated[float, Field(ge=0)] | None
    speed: str
    weights: WeightPattern | None
    gates: tuple[Gate, ...]
    competes: bool
    why_not: str
    chosen: bool
    energy_mj: Annotated[float, Field(ge=0)] | None = Field(None, exclude_if=lambda value: value is None)
    peak_bytes: Count | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def form(self) -> DeployedForm:
        """The form that the row is about."""
        return BY_NAME[self.name]

    @property
    def missed(self) -> tuple[Gate, ...]:
        """The gates that it does not reach."""
        return tuple(gate for gate in self.gates if gate.passed is False)

    @property
    def judged(self) -> str:
        """What its gates come to, in a few words."""
        if not self.competes:
            return self.why_not
        if self.missed:
            return "misses " + ", ".join(gate.name for gate in self.missed)
        waiting = [gate.name for gate in self.gates if gate.passed is None]
        return "meets all" + (f" but {', '.join(waiting)}, not measured" if waiting else "")


class FormChoice(Document):
    """The table and the choice; `chosen` is the name of a form, empty where none meets its gates, and `reason` one sentence.

    `measured_on` names what latency was measured on; empty where it was not measured on the target, and `advice` then says how to.
    """

    chosen: str
    reason: str
    measured_on: str
    advice: str
    rows: tuple[FormRow, ...]

    @property
    def row(self) -> FormRow | None:
        """The row of the form that was chosen; None where none was."""
        return next((row for row in self.rows if row.chosen), None)


def form_in_memory(chosen: str, has_int8: bool) -> DeployedForm:
    """Returns the C file that an artifact's gates on flash and RAM are about: the chosen one, else the int8 one where it is there."""
    if chosen in (SEQUENTIAL.name, INT8_C.name):
        return BY_NAME[chosen]
    return INT8_C if has_int8 else SEQUENTIAL
