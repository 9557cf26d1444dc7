"""The timed runs of one form on a device: the samples that were kept, the count of every time, and what follows from all runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from vsparse.artifact.document import Count, Part
from vsparse.artifact.latency import NS_PER_MS, ORDER, RANKS, Latency, Milliseconds, TimeCounts
from vsparse.artifact.percentile import percentile


class DevicePart(Part):
    """A part of a device's results: the script runs without vsparse, and reports more of each runtime than is read here."""

    model_config = ConfigDict(extra="allow")


class DeviceSamples(DevicePart):
    """The timed runs, in ms; percentiles stand beside them, and are derived again.

    `runs` counts them; of very many every so many is kept, and `runs_timed` counts all, each of which is in `all_runs_ns`.
    `block_samples`: how many of those that were kept are of each turn.
    """

    samples_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1)]
    runs: Count | None = Field(None, exclude_if=lambda value: value is None)
    runs_timed: Count | None = Field(None, exclude_if=lambda value: value is None)
    all_runs_ns: TimeCounts | None = Field(None, exclude_if=lambda value: value is None)
    block_samples: tuple[Count, ...] | None = Field(None, exclude_if=lambda value: value is None)
    block_medians_ms: tuple[Milliseconds, ...] = Field((), exclude_if=lambda value: not value)
    latency_ms_p50: Milliseconds | None = Field(None, exclude_if=lambda value: value is None)
    latency_ms_p90: Milliseconds | None = Field(None, exclude_if=lambda value: value is None)
    latency_ms_p99: Milliseconds | None = Field(None, exclude_if=lambda value: value is None)
    latency_ms_mean: Milliseconds | None = Field(None, exclude_if=lambda value: value is None)
    latency_ms_min: Milliseconds | None = Field(None, exclude_if=lambda value: value is None)
    latency_ms_max: Milliseconds | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        kept = len(self.samples_ms)
        if self.runs not in (None, kept):
            raise ValueError(f"runs: it is {self.runs}, and samples_ms has {kept}")
        if self.runs_timed is not None and self.runs_timed < kept:
            raise ValueError(f"runs_timed: it is {self.runs_timed}, and samples_ms has {kept}")
        if self.block_samples is not None and sum(self.block_samples) != kept:
            raise ValueError(f"block_samples: they come to {sum(self.block_samples)}, and samples_ms has {kept}")
        self._hold_all_runs()
        for key, rank in RANKS.items():
            self._hold(key, percentile(self.samples_ms, rank), None if self.all_runs_ns is None else self.all_runs_ns.percentile(rank))
        self._hold("latency_ms_mean", self.means[0], self.means[-1])
        ends = (min(self.samples_ms), max(self.samples_ms))
        of_all = ends if self.all_runs_ns is None else self.all_runs_ns.ends
        for place, key in enumerate(("latency_ms_min", "latency_ms_max")):
            self._hold(key, ends[place], of_all[place])
        return self

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of the runs that were kept, and where all are counted that of all."""
        of_kept = math.fsum(self.samples_ms) / len(self.samples_ms)
        return (of_kept,) if self.all_runs_ns is None else (of_kept, self.all_runs_ns.mean())

    def _hold_all_runs(self) -> None:
        """Refuses counts of other runs than there were, or that do not hold the samples."""
        if self.all_runs_ns is None:
            return
        timed = len(self.samples_ms) if self.runs_timed is None else self.runs_timed
        if self.all_runs_ns.total != timed:
            raise ValueError(f"all_runs_ns: it counts {self.all_runs_ns.total} runs, and {timed} were timed")
        held = dict(zip(self.all_runs_ns.values, self.all_runs_ns.counts, strict=True))
        for value, count in Counter(round(min(sample, 1e12) * NS_PER_MS) for sample in self.samples_ms).items():
            if held.get(value, 0) < count:
                raise ValueError(f"samples_ms: {value / NS_PER_MS:g} is there {count} times, and in all_runs_ns {held.get(value, 0)} times")

    def _hold(self, key: str, of_kept: float, of_all: float | None) -> None:
        """Refuses what is stated of the runs where neither those that were kept nor all of them give it."""
        stated = getattr(self, key)
        right = (of_kept, of_kept if of_all is None else of_all)
        if stated is not None and not any(math.isclose(stated, one, rel_tol=1e-9, abs_tol=1e-12) for one in right):
            raise ValueError(f"{key}: it is {stated:g}, and the timed runs give {right[-1]:g}")


class DeviceLatency(Latency):
    """The latency of a form on a device: its percentiles are of all runs, where the device counted them, as is its mean."""

    block_medians: tuple[Milliseconds, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _settings_of_json(cls, content: Any) -> Any:
        return content  # it is read from no file of its own

    @property
    def runs(self) -> int:
        """How many runs were timed."""
        return len(self.samples_ms) if self.all_runs_ns is None else self.all_runs_ns.total

    @property
    def p50(self) -> float:
        """Median, ms."""
        return self._percentile(50)

    @property
    def p90(self) -> float:
        """90th percentile, ms."""
        return self._percentile(90)

    @property
    def p99(self) -> float:
        """99th percentile, ms."""
        return self._percentile(99)

    @property
    def largest(self) -> float:
        """The longest run, ms."""
        return max(self.samples_ms) if self.all_runs_ns is None else self.all_runs_ns.ends[1]

    @property
    def mean(self) -> float:
        """Mean, ms."""
        return super().mean if self.all_runs_ns is None else self.all_runs_ns.mean()

    @property
    def jitter(self) -> float:
        """Standard deviation, ms."""
        return super().jitter if self.all_runs_ns is None else self.all_runs_ns.deviation()

    @property
    def batch(self) -> int:
        """How many samples one run has; a run is what every time here is of."""
        found = self.settings.get("batch")
        return found if isinstance(found, int) and found >= 1 else 1

    def _percentile(self, rank: int) -> float:
        return percentile(self.samples_ms, rank) if self.all_runs_ns is None else self.all_runs_ns.percentile(rank)

    def block_ratios(self, other: Latency) -> tuple[float, ...]:
        """For each round of an alternation, the median of the block over the other's; as `Latency` without medians of blocks."""
        if not isinstance(other, DeviceLatency) or not self.block_medians:
            return super().block_ratios(other)
        if self.settings.get(ORDER) is None or self.settings.get(ORDER) != other.settings.get(ORDER):
            return ()
        return block_ratios(self.block_medians, other.block_medians)


def block_ratios(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    """Returns the ratios of medians of as many blocks; empty for other numbers of them, or where a block took no time."""
    if len(one) != len(other) or not all(other):
        return ()
    return tuple(left / right for left, right in zip(one, other, strict=True))
