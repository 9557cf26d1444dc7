"""What `vsparse profile` returns: latencies, the ratio of two, and all that was measured as JSON values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsparse.artifact.choice import FormChoice
from vsparse.artifact.device import DeviceResults, LayerTime
from vsparse.artifact.latency import Latency
from vsparse.files import write_json
from vsparse.notebook import table


@dataclass(frozen=True)
class ProfileResult:
    """Latency by network, the ratio of packed to dense where both were measured, and the conditions in words.

    `choice` is what an artifact chooses with the latencies of its device, and `device` all that was measured there; None where nothing was.
    """

    latencies: dict[str, Latency]
    ratio: float | None
    conditions: str
    raw: dict[str, Any]
    choice: FormChoice | None = None
    device: DeviceResults | None = None
    layers: dict[str, tuple[LayerTime, ...]] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        rows = [(name, one.p50, one.p90, one.p99, one.largest, one.jitter) for name, one in self.latencies.items()]
        return table("latency, ms", ("network", "p50", "p90", "p99", "slowest (no WCET)", "jitter"), rows, self.conditions)

    @property
    def chooses(self) -> bool:
        """Whether an artifact with these latencies still has a form that meets its gates; True where none are those of its device."""
        return self.choice is None or self.choice.row is not None

    def as_dict(self) -> dict[str, Any]:
        """Returns the measurement as JSON values, raw samples included."""
        return self.raw


def profiled(
    found: dict[str, Latency],
    ratio: float | None,
    raw: dict[str, Any],
    conditions: str,
    save: Path | None,
    layers: dict[str, tuple[LayerTime, ...]],
) -> ProfileResult:
    """Returns what was measured on this machine, written to `save` where that is given."""
    raw = {**raw, "conditions": conditions}
    if layers:
        raw["layers"] = {name: [row.model_dump(mode="json") for row in rows] for name, rows in layers.items()}
    if save is not None:
        write_json(save, raw)
    return ProfileResult(found, ratio, conditions, raw, layers=layers)
