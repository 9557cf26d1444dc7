"""Files of profile/: latency as measured, dense beside packed, with raw samples and all that is derived from them."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate, pairwise
from statistics import median
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vsparse.artifact.document import Conditions, Document, Part
from vsparse.artifact.noise import Noise
from vsparse.artifact.percentile import percentile

METHOD = "alternating blocks: dense, packed, dense, packed, …"
# Keys of the settings of a latency that was taken in alternation: runs of a block, and the order in which the models took turns.
BLOCK_RUNS, ORDER = "block_runs", "alternating_blocks_of"
# And how many of its samples are of each block: blocks are turns of one length in time.
BLOCK_SAMPLES = "block_samples"
NS_PER_MS = 1e6
LONGEST_MS = 1e12  # no run takes 30 years, and squares of what is below can be added up
Milliseconds = Annotated[float, Field(ge=0, le=LONGEST_MS)]
RANKS = {"latency_ms_p50": 50, "latency_ms_p90": 90, "latency_ms_p99": 99}
_DERIVED = (
    *RANKS,
    "latency_ms_mean",
    "latency_ms_min",
    "latency_ms_max",
    "latency_ms_jitter",
    "coefficient_of_variation",
    "runs",
)
_BLOCKS = (
    "ratio_packed_to_dense_of_medians",
    "ratio_packed_to_dense_median_of_blocks",
    "speedup_of_medians",
    "block_ratios",
)


class TimeCounts(Part):
    """How often each time was seen, of all runs: `values` in ns, in order."""

    values: Annotated[tuple[Annotated[int, Field(ge=0, le=2**62)], ...], Field(min_length=1)]
    counts: Annotated[tuple[Annotated[int, Field(ge=1, le=2**53)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if len(self.values) != len(self.counts):
            raise ValueError(f"counts: there are {len(self.counts)}, and {len(self.values)} values")
        if any(one >= other for one, other in pairwise(self.values)):
            raise ValueError("values: they are not in order, each once")
        return self

    @property
    def total(self) -> int:
        """How many runs there were."""
        return sum(self.counts)

    @property
    def ends(self) -> tuple[float, float]:
        """The shortest and the longest of all runs, in ms."""
        return self.values[0] / NS_PER_MS, self.values[-1] / NS_PER_MS

    def percentile(self, rank: int) -> float:
        """Returns a percentile of all runs in ms, as `percentile` defines it of a list."""
        below = list(accumulate(self.counts))
        place = max(self.total - 1 - int((100 - rank) * self.total / 100), 0)
        return self.values[bisect_right(below, place)] / NS_PER_MS

    def mean(self) -> float:
        """Returns the mean of all runs in ms."""
        return sum(value * count for value, count in zip(self.values, self.counts, strict=True)) / self.total / NS_PER_MS

    def deviation(self) -> float:
        """Returns the standard deviation of all runs in ms."""
        mean = self.mean() * NS_PER_MS
        parts = (count * (value - mean) ** 2 for value, count in zip(self.values, self.counts, strict=True))
        return math.sqrt(math.fsum(parts) / self.total) / NS_PER_MS


class Latency(Document):
    """The latency of one model in one runtime on one machine: every timed run in ms, in the order of the runs, warm-up left out.

    Of very many runs every so many is kept, evenly; `all_runs_ns` counts all. `noise` says why the times are noisy: empty where nothing
    does, None where that was not examined. `settings` says how it was measured (threads, providers, batch, …), `machine` where. In JSON the
    settings stand beside the samples, and so does what follows from these, which is derived again when it is read and never believed.
    """

    samples_ms: tuple[Milliseconds, ...] = Field(min_length=1)
    settings: Conditions = Field(default_factory=dict)
    machine: Conditions = Field(default_factory=dict)
    noise: Noise | None = None
    all_runs_ns: TimeCounts | None = None

    @model_validator(mode="before")
    @classmethod
    def _settings_of_json(cls, content: Any) -> Any:
        if not isinstance(content, dict) or isinstance(content.get("settings"), dict):
            return content
        own = {key: content[key] for key in ("schema_version", "samples_ms", "machine", "noise", "all_runs_ns") if key in content}
        return own | {"settings": {key: value for key, value in content.items() if key not in own and key not in _DERIVED}}

    @model_serializer(mode="wrap")
    def _settings_in_json(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        derived = {
            "runs": len(self.samples_ms),
            **{name: percentile(self.samples_ms, rank) for name, rank in RANKS.items()},
            "latency_ms_mean": self.mean,
            "latency_ms_min": min(self.samples_ms),
            "latency_ms_max": self.largest,
            "latency_ms_jitter": self.jitter,
            "coefficient_of_variation": self.variation,
        }
        rest = {key: content[key] for key in ("machine", "noise", "samples_ms", "all_runs_ns") if content[key] is not None}
        return {"schema_version": content["schema_version"], **content["settings"], **derived, **rest}

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

    @property
    def largest(self) -> float:
        """The longest run, ms."""
        return max(self.samples_ms)

    @property
    def jitter(self) -> float:
        """Standard deviation, ms."""
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.samples_ms) / len(self.samples_ms))

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation over mean; 0 where the mean is 0."""
        return self.jitter / self.mean if self.mean else 0.0

    @property
    def runs_timed(self) -> int:
        """How many runs were timed, those left out of the samples included."""
        told = self.settings.get("runs_timed")
        return told if type(told) is int else len(self.samples_ms)

    @property
    def blocks(self) -> tuple[tuple[float, ...], ...]:
        """The samples of each turn of an alternation, none of one of which none was kept; empty where that is not on record."""
        sizes = self.settings.get(BLOCK_SAMPLES)
        if not isinstance(sizes, tuple):
            runs = self.settings.get(BLOCK_RUNS)
            whole = type(runs) is int and 1 <= runs <= len(self.samples_ms)
            sizes = (runs,) * (len(self.samples_ms) // runs) if whole and type(runs) is int else ()
        if not all(type(size) is int and size >= 0 for size in sizes):
            return ()
        ends = tuple(accumulate((size for size in sizes if type(size) is int), initial=0))
        if ends[-1] > len(self.samples_ms):
            return ()
        return tuple(self.samples_ms[start:end] for start, end in pairwise(ends))

    def block_ratios(self, other: Latency) -> tuple[float, ...]:
        """For each pair of neighbouring blocks, its median over the other's; empty where the two were not taken in one alternation."""
        if self.settings.get(ORDER) != other.settings.get(ORDER) or ORDER not in self.settings:
            return ()
        return _ratios(self.blocks, other.blocks)


class LatencyFile(Document):
    """A file of profile/ about the packed network, alone or in alternating blocks beside its dense parent.

    Blocks are turns of one length in time, of `block_runs` runs each in the middle. Ratios are packed over dense: below 1 means that
    packing made the network faster.
    """

    method: str | None = Field(None, exclude_if=lambda value: value is None)
    block_runs: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    dense: Latency | None = Field(None, exclude_if=lambda value: value is None)
    packed: Latency

    @model_validator(mode="before")
    @classmethod
    def _without_derived(cls, content: Any) -> Any:
        return {key: value for key, value in content.items() if key not in _BLOCKS} if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _blocks_of_two(self) -> Self:
        if len({self.method is None, self.block_runs is None, self.dense is None}) != 1:
            raise ValueError("method, block_runs and dense belong together")
        return self

    @model_serializer(mode="wrap")
    def _with_derived(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        ratio = self.ratio
        if ratio is None:
            return content
        latencies = {"dense": content.pop("dense"), "packed": content.pop("packed")}
        derived = (ratio, self.ratio_of_blocks, 1 / ratio if ratio else None, list(self.block_ratios))
        return content | dict(zip(_BLOCKS, derived, strict=True)) | latencies

    @property
    def ratio(self) -> float | None:
        """Median of packed over median of dense; None where there is no dense one, or it took no time at all."""
        return self.packed.p50 / self.dense.p50 if self.dense and self.dense.p50 else None

    @property
    def block_ratios(self) -> tuple[float, ...]:
        """For each pair of neighbouring blocks, median of packed over median of dense; empty without a dense parent."""
        if self.dense is None or self.block_runs is None:
            return ()
        return self.packed.block_ratios(self.dense) or _ratios(*(_of_length(one, self.block_runs) for one in (self.packed, self.dense)))

    @property
    def ratio_of_blocks(self) -> float:
        """Median of the block ratios: the steadier number where the machine's speed drifts during the run."""
        return median(self.block_ratios)


def side_by_side(dense: Latency, packed: Latency, block_runs: int | None = None, method: str = METHOD) -> LatencyFile:
    """Returns two latencies taken in alternating blocks as one file; `block_runs` by default as the packed one says."""
    told = packed.settings.get(BLOCK_RUNS) if block_runs is None else block_runs
    return LatencyFile(method=method, block_runs=told if isinstance(told, int) else None, dense=dense, packed=packed)


def _of_length(latency: Latency, n: int) -> tuple[tuple[float, ...], ...]:
    return tuple(latency.samples_ms[i : i + n] for i in range(0, len(latency.samples_ms) // n * n, n))


def _ratios(left: tuple[tuple[float, ...], ...], right: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """Returns the ratio of the medians of each pair of blocks, of which the right one took any time; none where they are no pairs."""
    if len(left) != len(right):
        return ()
    pairs = ((median(one), median(other)) for one, other in zip(left, right, strict=True) if one and other)
    return tuple(one / other for one, other in pairs if other)
