"""Latency from raw samples."""

from __future__ import annotations

import bisect
import collections
import json
import math
import time
from typing import Any

from vsparse.stages.export.device.basics import Stop

MAX_SAMPLES = 20000
PIECE_S, STEADY = 0.02, 0.03  # the last three pieces of warm-up are stable where their medians are this close
LEAST_TURNS, TURN_S = 10, 0.05  # at least so many turns of at most so long, but for runs that are longer
MOST_TURNS, MOST_RUNS = 1000, 1 << 20


class Thinned:
    """Samples of a run of any length: every one, or every 2nd, 4th, … once more than `limit` would be kept.

    A network of microseconds makes half a million runs in ten seconds; evenly thinned, its samples still cover the whole time. `sizes`
    counts the kept samples of each block that was added.
    """

    def __init__(self, limit: int = MAX_SAMPLES) -> None:
        self.limit, self.every, self.total = limit, 1, 0
        self.kept: list[float] = []
        self.ends: list[int] = []

    def extend(self, block: list[float]) -> None:
        self.kept += block[-self.total % self.every :: self.every]
        self.total += len(block)
        self.ends.append(self.total)
        while len(self.kept) > self.limit:
            self.kept = self.kept[::2]
            self.every *= 2

    @property
    def lengths(self) -> list[int]:
        return [end - start for start, end in neighbours([0, *self.ends])]

    @property
    def sizes(self) -> list[int]:
        kept = [-(-end // self.every) for end in [0, *self.ends]]
        return [end - start for start, end in neighbours(kept)]


def neighbours(values: list[Any]) -> list[Any]:
    return [(values[i], values[i + 1]) for i in range(len(values) - 1)]


class Counted:
    """Samples in nanoseconds, thinned in order, with the count of each time and the median of each block.

    Counts are of all runs, so that no outlier is lost where samples are left out; medians of blocks compare with those of the same round.
    `cpu_s` is the time that the process had a processor, of `wall_s` in which it was measured; None where that is not known.
    """

    def __init__(self) -> None:
        self.thinned = Thinned()
        self.counts: dict[int, int] = {}
        self.medians: list[float] = []
        self.spent_s = self.wall_s = 0.0
        self.cpu_s: float | None = None

    def add(self, block: Any, cpu_s: float | None = None, wall_s: float = 0.0) -> None:
        for ns, count in collections.Counter(block).items():
            self.counts[ns] = self.counts.get(ns, 0) + count
        self.thinned.extend([ns / 1e6 for ns in block])
        self.medians.append(percentile(block, 50) / 1e6)
        self.spent_s += math.fsum(block) / 1e9
        if cpu_s is not None:
            self.cpu_s, self.wall_s = (self.cpu_s or 0.0) + cpu_s, self.wall_s + wall_s

    def latency(self) -> dict[str, Any]:
        """Returns what is told of it; percentiles, mean, extremes and jitter are all those of all runs."""
        ordered = sorted(self.counts)
        return {
            "runs": len(self.thinned.kept),
            "runs_timed": self.thinned.total,
            "samples_kept_every": self.thinned.every,
            **figures_of(ordered, [self.counts[ns] for ns in ordered]),
            "samples_ms": list(self.thinned.kept),
            "timed_s": self.spent_s,
            "processor_share": None if self.cpu_s is None or not self.wall_s else self.cpu_s / self.wall_s,
            "all_runs_ns": {"values": ordered, "counts": [self.counts[ns] for ns in ordered]},
            "block_samples": self.thinned.sizes,
            "block_medians_ms": list(self.medians),
        }


def turns_of(runs: int, seconds: float, least: int = LEAST_TURNS) -> tuple[int, int]:
    """Returns how long a turn is, in ns, and how many runs it has at least: every form has turns of the same length, and as many.

    Of `least` turns at least and of 1000 at most, one lasts 50 ms where that gives so many.
    """
    turns = min(MOST_TURNS, max(least, math.ceil(seconds / TURN_S)))
    return math.ceil(1e9 * seconds / turns), max(1, math.ceil(runs / turns))


def timed_block(call: Any, runs: int, turn_ns: int, lead_ns: int) -> list[int]:
    """Calls something untimed for `lead_ns` and at least once, then until `runs` calls and `turn_ns` are over; the ns of each of these."""
    clock = time.perf_counter_ns
    begin = clock()
    while True:
        call()
        if clock() - begin >= lead_ns:
            break
    samples: list[int] = []
    begin = end = clock()
    while len(samples) < MOST_RUNS and (len(samples) < runs or end - begin < turn_ns):
        start = clock()
        call()
        end = clock()
        samples.append(end - start)
    return samples


def warmed_up(block: Any, least_runs: int, least_s: float, most_s: float) -> dict[str, Any]:
    """Runs until `least_runs` and `least_s` are over and the medians of the last three pieces agree within 3 %, or `most_s` are over.

    `block` runs so many times, and so many ns at least, and returns the ns of each run; a piece is 20 ms long, or a run.
    """
    start, runs = time.monotonic(), 0
    medians: list[float] = []
    while True:
        samples = block(1, int(1e9 * PIECE_S) if medians else 0)
        runs += len(samples) + 1
        medians = ([*medians, percentile(samples, 50)])[-3:]
        passed = time.monotonic() - start
        stable = len(medians) == 3 and max(medians) <= (1 + STEADY) * min(medians)
        if runs >= least_runs and passed >= least_s and (stable or passed >= most_s):
            return {"runs": runs, "seconds": passed, "stable": stable, "median_ns": medians[-1]}


def percentile(samples: list[float], p: float) -> float:
    """Percentile as trtexec defines it: sorted[max(n - 1 - int((1 - p/100) n), 0)]."""
    ordered = sorted(samples)
    return ordered[max(len(ordered) - 1 - int((100 - p) * len(ordered) / 100), 0)]


def spread(values: list[float]) -> float:
    """Coefficient of variation: standard deviation over mean; 0 where the mean is 0."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) / mean if mean else 0.0


def figures_of(values: list[int], counts: list[int]) -> dict[str, float]:
    """Returns what is told of times in ns, in ascending order, by how often each was seen; jitter is the standard deviation."""
    ends: list[int] = []
    for count in counts:
        ends.append(count + (ends[-1] if ends else 0))
    total = ends[-1]
    found = {}
    for rank in (50, 90, 99):
        place = max(total - 1 - int((100 - rank) * total / 100), 0)
        found[f"latency_ms_p{rank}"] = values[bisect.bisect_right(ends, place)] / 1e6
    mean = sum(value * count for value, count in zip(values, counts)) / total  # noqa: B905 - Python 3.8
    deviation = math.sqrt(math.fsum(count * (value - mean) ** 2 for value, count in zip(values, counts)) / total)  # noqa: B905
    found.update(latency_ms_mean=mean / 1e6, latency_ms_min=values[0] / 1e6, latency_ms_max=values[-1] / 1e6)
    return {**found, "latency_ms_jitter": deviation / 1e6, "coefficient_of_variation": deviation / mean if mean else 0.0}


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
