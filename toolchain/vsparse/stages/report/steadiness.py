"""How steady times are, on the build machine and on a device: a row for each form, why it is noisy, and where its outliers lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vsparse.artifact.device import DeviceRuntime, LayerTime, one_line
from vsparse.artifact.facts import Facts
from vsparse.artifact.latency import NS_PER_MS, Latency, LatencyFile
from vsparse.stages.report.charts import picture, tag, text

WIDE, TALL, BINS = 300, 44, 75


@dataclass(frozen=True)
class SteadyRow:
    """The times of one form; `where` it was timed, and `reasons` why they are noisy (None: that was not examined)."""

    label: str
    where: str
    latency: Latency

    @property
    def reasons(self) -> tuple[str, ...] | None:
        """Why its times are noisy, in sentences; empty where nothing says so."""
        return None if self.latency.noise is None else tuple(one_line(reason.detail) for reason in self.latency.noise)

    @property
    def runs(self) -> int:
        """How many runs were timed."""
        return self.latency.runs_timed if self.latency.all_runs_ns is None else self.latency.all_runs_ns.total

    @property
    def slowest(self) -> float:
        """The slowest of all runs, ms."""
        return self.latency.largest if self.latency.all_runs_ns is None else self.latency.all_runs_ns.ends[1]


def rows(facts: Facts) -> list[SteadyRow]:
    """Returns a row for each form that was timed: those of the build machine first."""
    here = [
        SteadyRow(f"{file.removesuffix('.json')}, {name}" if item.dense else file.removesuffix(".json"), facts.build_machine or "here", one)
        for file, item in facts.latency_files.items()
        for name, one in (("dense", item.dense), ("packed", item.packed))
        if one is not None
    ]
    if facts.device is None:
        return here
    there = []
    for model in facts.device.measurements:
        latency = model.measured(facts.device.device)
        if latency is not None:
            runtime = model.runtime or facts.device.runtime or DeviceRuntime()
            there.append(SteadyRow(one_line(f"{model.role} ({runtime.name})", 120), facts.device.label, latency))
    return here + there


def noisy(item: LatencyFile) -> list[str]:
    """Returns why the times of a file are noisy, each reason once."""
    found = [reason.detail for one in (item.packed, item.dense) if one is not None for reason in one.noise or ()]
    return list(dict.fromkeys(one_line(detail) for detail in found))


def strip(row: SteadyRow) -> Markup:
    """A histogram of all runs on a logarithmic axis of time: bars by the square root of the count, and never so low that one is unseen."""
    counted = row.latency.all_runs_ns
    times = [(value, 1) for value in row.latency.samples_ms]
    if counted is not None:
        times = [(value / NS_PER_MS, count) for value, count in zip(counted.values, counted.counts, strict=True)]
    low = max(min(value for value, _ in times), 1e-6)
    high = max(max(value for value, _ in times), low * 1.01)
    span = math.log(high / low)

    def place(value: float) -> float:
        return min(max(math.log(max(value, low) / low) / span, 0.0), 1.0)

    counts = [0] * BINS
    for value, count in times:
        counts[min(int(place(value) * BINS), BINS - 1)] += count
    most, base = max(counts), TALL - 14
    parts = [tag("line", x1=0, x2=WIDE, y1=base, y2=base, kind="axis")]
    for number, count in enumerate(counts):
        if count:
            tall = max(3.0, (base - 2) * math.sqrt(count / most))
            kind = "part-sparse" if (number + 1) / BINS <= place(row.latency.p99) + 1 / BINS else "part-falsified"
            parts.append(tag("rect", x=number * WIDE / BINS, y=base - tall, width=WIDE / BINS * 0.9, height=tall, kind=kind))
    for value in (row.latency.p50, row.latency.p99):
        parts.append(tag("line", x1=place(value) * WIDE, x2=place(value) * WIDE, y1=0, y2=base, kind="mark"))
    parts.append(text(0, TALL - 2, f"{low:.3g} ms", "label small", "start"))
    parts.append(text(WIDE, TALL - 2, f"{high:.3g} ms", "label small", "end"))
    label = f"{row.label}: {row.runs} runs from {low:.3g} to {high:.3g} ms; median and 99th percentile are marked"
    return picture(parts, label, WIDE, TALL)


def layers(facts: Facts) -> list[tuple[str, Sequence[LayerTime]]]:
    """Returns the times of layers of each form that a device took them of."""
    found = () if facts.device is None else facts.device.measurements
    named = ((one, one.runtime or DeviceRuntime()) for one in found if one.layer_times)
    return [(one_line(f"{one.file} ({runtime.name})", 160), one.layer_times or ()) for one, runtime in named]


def as_json(facts: Facts) -> list[dict[str, Any]]:
    """Returns the same for programs."""
    return [
        {
            "form": row.label,
            "where": row.where,
            "runs": row.runs,
            "latency_ms_max": row.slowest,
            "latency_ms_jitter": row.latency.jitter,
            "coefficient_of_variation": row.latency.variation,
            "noise": None if row.reasons is None else list(row.reasons),
        }
        for row in rows(facts)
    ]
