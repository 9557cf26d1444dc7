"""Files of profile/: latency as measured, dense beside packed, with raw samples and all that is derived from them."""

from __future__ import annotations

import math
from statistics import median
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vsparse.artifact.document import Conditions, Document
from vsparse.artifact.percentile import percentile

METHOD = "alternating blocks: dense, packed, dense, packed, …"
# Keys of the settings of a latency that was taken in alternation: runs of a block, and the order in which the models took turns.
BLOCK_RUNS, ORDER = "block_runs", "alternating_blocks_of"
Milliseconds = Annotated[float, Field(ge=0)]
RANKS = {"latency_ms_p50": 50, "latency_ms_p90": 90, "latency_ms_p99": 99}
_DERIVED = (*RANKS, "latency_ms_mean", "latency_ms_min", "latency_ms_max", "runs")
_BLOCKS = (
    "ratio_packed_to_dense_of_medians",
    "ratio_packed_to_dense_median_of_blocks",
    "speedup_of_medians",
    "block_ratios",
)


class Latency(Document):
    """The latency of one model in one runtime on one machine: every timed run in ms, in the order of the runs, warm-up left out.

    `settings` says how it was measured (threads, providers, batch, …), `machine` where. In JSON the settings stand beside the samples, and
    so does what follows from these, which is derived again when it is read and never believed.
    """

    samples_ms: tuple[Milliseconds, ...] = Field(min_length=1)
    settings: Conditions = Field(default_factory=dict)
    machine: Conditions = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _settings_of_json(cls, content: Any) -> Any:
        if not isinstance(content, dict) or isinstance(content.get("settings"), dict):
            return content
        own = {key: content[key] for key in ("schema_version", "samples_ms", "machine") if key in content}
        return own | {"settings": {key: value for key, value in content.items() if key not in own and key not in _DERIVED}}

    @model_serializer(mode="wrap")
    def _settings_in_json(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        derived = {
            "runs": len(self.samples_ms),
            **{name: percentile(self.samples_ms, rank) for name, rank in RANKS.items()},
            "latency_ms_mean": self.mean,
            "latency_ms_min": min(self.samples_ms),
            "latency_ms_max": max(self.samples_ms),
        }
        rest = {"machine": content["machine"], "samples_ms": content["samples_ms"]}
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

    def block_ratios(self, other: Latency) -> tuple[float, ...]:
        """For each pair of neighbouring blocks, its median over the other's; empty where the two were not taken in one alternation."""
        runs = self.settings.get(BLOCK_RUNS)
        together = all(self.settings.get(key) == other.settings.get(key) for key in (BLOCK_RUNS, ORDER))
        if not together or not isinstance(runs, int) or runs < 1 or len(self.samples_ms) != len(other.samples_ms):
            return ()
        return _ratios(self, other, runs)


class LatencyFile(Document):
    """A file of profile/ about the packed network, alone or in alternating blocks beside its dense parent.

    Block i of each is `block_runs` consecutive samples. Ratios are packed over dense: below 1 means that packing made the network faster.
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
        return _ratios(self.packed, self.dense, self.block_runs)

    @property
    def ratio_of_blocks(self) -> float:
        """Median of the block ratios: the steadier number where the machine's speed drifts during the run."""
        return median(self.block_ratios)


def side_by_side(dense: Latency, packed: Latency, block_runs: int, method: str = METHOD) -> LatencyFile:
    """Returns two latencies taken in alternating blocks as one file."""
    return LatencyFile(method=method, block_runs=block_runs, dense=dense, packed=packed)


def _ratios(left: Latency, right: Latency, n: int) -> tuple[float, ...]:
    """Returns the ratio of the medians of each pair of blocks of n samples, of which the right one took any time."""
    pairs = ((median(left.samples_ms[i : i + n]), median(right.samples_ms[i : i + n])) for i in range(0, len(right.samples_ms) // n * n, n))
    return tuple(one / other for one, other in pairs if other)
