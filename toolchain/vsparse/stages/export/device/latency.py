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


def percentile(samples: list[float], p: float) -> float:
    """Percentile as trtexec defines it: sorted[max(n - 1 - int((1 - p/100) n), 0)]."""
    ordered = sorted(samples)
    return ordered[max(len(ordered) - 1 - int((100 - p) * len(ordered) / 100), 0)]


def latency_of(thinned: Thinned) -> dict[str, Any]:
    samples = thinned.kept
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


def read_layer_times(path: str) -> list[Any] | None:
    """Reads trtexec's --exportProfile file: one entry a layer, or None where it is not readable."""
    try:
        with open(path, encoding="utf-8") as stream:
            entries = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return None
    return [entry for entry in entries if isinstance(entry, dict) and "name" in entry] if isinstance(entries, list) else None


def read_times(path: str) -> Thinned:
    """Reads trtexec's --exportTimes file: the latencyMs of every timed run."""
    try:
        with open(path, encoding="utf-8") as stream:
            entries = json.load(stream)
        samples = [float(entry["latencyMs"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Stop(1, f"trtexec wrote no readable times ({error!r}); run again") from None
    if not samples or not all(math.isfinite(s) and s > 0 for s in samples):
        raise Stop(1, "trtexec's times are empty, or not positive numbers; run again")
    thinned = Thinned()
    for sample in samples:
        thinned.add(sample)
    return thinned
