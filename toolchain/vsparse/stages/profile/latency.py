"""Latency as measured: raw samples, and what is derived from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vsparse.errors import InputError


def percentile(samples: Sequence[float], p: float) -> float:
    """Returns the p-th percentile, always one of the samples: sorted[max(n − 1 − int((1 − p/100)·n), 0)].

    The same definition as trtexec's and the device script's, so that numbers of one table compare; written as (100 − p)·n/100, which
    is exact for whole p. Raises InputError for no samples and for p outside 0 to 100.
    """
    if not samples or not 0 <= p <= 100:
        raise InputError(f"the {p}th percentile of {len(samples)} samples is not defined; give at least one sample and 0 to 100")
    ordered = sorted(samples)
    return ordered[max(len(ordered) - 1 - int((100 - p) * len(ordered) / 100), 0)]


@dataclass(frozen=True)
class Latency:
    """The latency of one model in one runtime on one machine: every timed run in ms, in the order of the runs, warm-up left out.

    `settings` says how it was measured (threads, providers, batch, …), `machine` where.
    """

    samples_ms: tuple[float, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples_ms or not all(math.isfinite(s) and s >= 0 for s in self.samples_ms):
            raise InputError("a latency needs at least one timed run, and every time must be finite and not negative; measure again")

    @property
    def p50(self) -> float:
        """Median, ms."""
        return percentile(self.samples_ms, 50)

    @property
    def p90(self) -> float:
        """90th percentile, ms."""
        return percentile(self.samples_ms, 90)

    @property
    def p99(self) -> float:
        """99th percentile, ms."""
        return percentile(self.samples_ms, 99)

    @property
    def mean(self) -> float:
        """Mean, ms."""
        return math.fsum(self.samples_ms) / len(self.samples_ms)

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON values with units in the key names; the raw samples come last."""
        return {
            "schema_version": 1,
            **self.settings,
            "runs": len(self.samples_ms),
            "latency_ms_p50": self.p50,
            "latency_ms_p90": self.p90,
            "latency_ms_p99": self.p99,
            "latency_ms_mean": self.mean,
            "latency_ms_min": min(self.samples_ms),
            "latency_ms_max": max(self.samples_ms),
            "machine": self.machine,
            "samples_ms": list(self.samples_ms),
        }

    @staticmethod
    def from_dict(value: Any) -> Latency:
        """Rebuilds a latency from `as_dict`'s JSON; derived numbers are derived again. Raises InputError for anything else."""
        derived = {"schema_version", "runs", "machine", "samples_ms"}
        if not isinstance(value, dict) or not isinstance(value.get("samples_ms"), list) or not isinstance(value.get("machine", {}), dict):
            raise InputError("this is no latency measurement: samples_ms or machine is missing or of another type; measure again")
        samples = value["samples_ms"]
        if not all(isinstance(s, int | float) and not isinstance(s, bool) for s in samples):
            raise InputError("this is no latency measurement: samples_ms must be numbers; measure again")
        settings = {k: v for k, v in value.items() if k not in derived and not k.startswith("latency_ms_")}
        try:
            times = tuple(float(s) for s in samples)
        except OverflowError as error:
            raise InputError("this is no latency measurement: a sample is beyond every clock; measure again") from error
        return Latency(times, settings, value.get("machine", {}))
