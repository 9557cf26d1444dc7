"""What ran on the target and what did not, thing by thing, and the slowest run that was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vsparse.artifact.facts import Facts
from vsparse.stages.report import steadiness

NOWHERE = "nowhere: not measured"
COMPILED = "compiled C"


@dataclass(frozen=True)
class RanWhere:
    """One thing that could be run on the target; `on_target` is whether it was, and `where` it was run instead, in words."""

    what: str
    on_target: bool
    where: str


def rows(facts: Facts) -> list[RanWhere]:
    """Returns a row for each thing that only execution can show."""
    device = facts.device
    there = device is not None and not device.emulated
    label = "" if device is None else device.label
    build = "the build machine" + (f" ({facts.build_machine})" if facts.build_machine else "")
    audited = there or (facts.audit is not None and facts.measured_on_target)
    timed = facts.of_target is not None or (bool(facts.latency) and facts.measured_on_target)
    models = () if device is None else device.measurements
    peak = any(one.memory is not None for one in models)
    energy = any(one.power is not None for one in models)

    def row(what: str, done: bool, elsewhere: str) -> RanWhere:
        return RanWhere(what, done, (label if there else build) if done else elsewhere)

    other = f"only on {label}" if device is not None else f"only on {build}"
    found = [
        row("Contract audit (the file is executed and held against its bounds)", audited, other if facts.audit or device else NOWHERE),
        row("Latency, and the slowest run", timed, other if facts.latency or device else NOWHERE),
        row("Memory of the process", there and peak, other if peak else NOWHERE),
        row("Energy", there and energy, other if energy else NOWHERE),
    ]
    if facts.live is not None:
        replayed = f"only on {build}, by {facts.live.computed_by}" if facts.live.computed_by else NOWHERE
        # A device times the C source; verdicts of its own are compared by its firmware alone.
        found.append(
            row("Live certificate (verdicts of the C source)", facts.target_kind == "host" and facts.live.computed_by == COMPILED, replayed)
        )
    return found


def worst(facts: Facts) -> steadiness.SteadyRow | None:
    """Returns the form with the slowest run that was seen, on the target where one was measured there; None where nothing was timed."""
    found = steadiness.rows(facts)
    own = [row for row in found if facts.of_target is not None and row.where == facts.of_target.label] or found
    deployed = [row for row in own if not row.label.endswith(", dense")] or own
    return max(deployed, key=lambda row: row.slowest, default=None)


def as_json(facts: Facts) -> dict[str, Any]:
    """Returns the same for programs."""
    slow = worst(facts)
    seen = (
        None
        if slow is None
        else {"form": slow.label, "where": slow.where, "latency_ms_max": slow.slowest, "runs": slow.runs, "is_wcet": False}
    )
    return {
        "on_target": [{"what": row.what, "on_target": row.on_target, "where": row.where} for row in rows(facts)],
        "worst_observed_latency": seen,
    }
