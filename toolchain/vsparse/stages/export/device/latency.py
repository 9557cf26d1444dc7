"""Latency from raw samples."""

from __future__ import annotations

import json
import math
from typing import Any

from vsparse.stages.export.device.basics import Stop

MAX_SAMPLES = 20000


class Thinned:
    """Samples of a run of any length: every one, or every 2nd, 4th, … once more than `limit` would be kept.

    A network of microseconds makes half a million runs in ten seconds; evenly thinned, its samples still cover the whole time.
    """

    def __init__(self, limit: int = MAX_SAMPLES) -> None:
        self.limit, self.every, self.total = limit, 1, 0
        self.kept: list[float] = []

    def add(self, sample: float) -> None:
        if self.total % self.every == 0:
            self.kept.append(sample)
            if len(self.kept) > self.limit:
                self.kept = self.kept[::2]
                self.every *= 2
        self.total += 1


class Counted:
    """Samples of whole nanoseconds, thinned in order, with the count of each time and the median of each block.

    Counts are of all runs, so that no outlier is lost where samples are left out; medians of blocks compare with those of the same round.
    """

    def __init__(self) -> None:
        self.thinned = Thinned()
        self.counts: dict[int, int] = {}
        self.medians: list[float] = []

    def add(self, block: list[int]) -> None:
        for ns in block:
            self.counts[ns] = self.counts.get(ns, 0) + 1
            self.thinned.add(ns / 1e6)
        self.medians.append(percentile([float(ns) for ns in block], 50) / 1e6)

    def latency(self) -> dict[str, Any]:
        ordered = sorted(self.counts)
        return {
            **latency_of(self.thinned),
            "latency_ms_min": ordered[0] / 1e6,
            "latency_ms_max": ordered[-1] / 1e6,
            "all_runs_ns": {"values": ordered, "counts": [self.counts[ns] for ns in ordered]},
            "block_medians_ms": list(self.medians),
        }


def percentile(samples: list[float], p: float) -> float:
    """Percentile as trtexec defines it: sorted[max(n - 1 - int((1 - p/100) n), 0)]."""
    ordered = sorted(samples)
    return ordered[max(len(ordered) - 1 - int((100 - p) * len(ordered) / 100), 0)]


def latency_of(thinned: Thinned) -> dict[str, Any]:
    samples = list(thinned.kept)
    return {
        "runs": len(samples),
        "runs_timed": thinned.total,
        "samples_kept_every": thinned.every,
        "latency_ms_p50": percentile(samples, 50),
        "latency_ms_p90": percentile(samples, 90),
        "latency_ms_p99": percentile(samples, 99),
        "latency_ms_mean": math.fsum(samples) / len(samples),
        "samples_ms": samples,
    }


def latency_in_blocks(blocks: list[list[float]]) -> dict[str, Any]:
    """What is told of times in ms that another program wrote, in blocks."""
    counted = Counted()
    for block in blocks:
        counted.add([max(1, round(sample * 1e6)) for sample in block])
    return counted.latency()


def read_layer_times(path: str) -> list[Any] | None:
    """Reads trtexec's --exportProfile file: one entry a layer, or None where it is not readable."""
    try:
        with open(path, encoding="utf-8") as stream:
            entries = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return None
    return [entry for entry in entries if isinstance(entry, dict) and "name" in entry] if isinstance(entries, list) else None


def read_times(path: str) -> tuple[list[float], float | None]:
    """Reads trtexec's --exportTimes file: the latencyMs of every run, and the seconds from the first start to the last end."""
    try:
        with open(path, encoding="utf-8") as stream:
            entries = json.load(stream)
        samples = [float(entry["latencyMs"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Stop(1, f"trtexec wrote no readable times ({error!r}); run again") from None
    if not samples or not all(math.isfinite(s) and s > 0 for s in samples):
        raise Stop(1, "trtexec's times are empty, or not positive numbers; run again")
    starts = [entry.get("startEnqMs") for entry in (entries[0], entries[-1])]
    if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in starts):
        return samples, None
    return samples, max(0.0, (starts[1] - starts[0] + samples[-1]) / 1000)
