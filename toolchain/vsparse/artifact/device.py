"""results.json of a device: what agent.py measured there, bound to the models of the device folder by their hashes."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from vsparse.artifact.document import Conditions, Count, Document, Part
from vsparse.artifact.latency import BLOCK_SAMPLES, Latency, Milliseconds, TimeCounts
from vsparse.artifact.noise import Noise

# Where an artifact keeps the results that were fetched; a folder of its own, as profile/*.json are what the build measured.
DEVICE_RESULTS = "profile/device/results.json"


class DevicePart(Part):
    """A part of a device's results: the script runs without vsparse, and reports more of each runtime than is read here."""

    model_config = ConfigDict(extra="allow")


AUDIT = "audit"
# How the script words an audit that passed, and how many probes it ran.
RAN = re.compile(r"the logits of ([0-9]{1,9}) probe\(s\)")


class DeviceGate(DevicePart):
    """One gate that was judged on the device; `passed` is None where it was not examined."""

    name: str
    passed: bool | None
    detail: str

    @property
    def probes(self) -> int | None:
        """How many probes an audit that passed ran through the network; None where its sentence does not say."""
        told = RAN.match(self.detail) if self.name == AUDIT and self.passed else None
        return None if told is None else int(told[1])

    @model_validator(mode="after")
    def _examined(self) -> Self:
        if self.probes == 0:
            raise ValueError("passed: it is true, and detail says that 0 probes were compared")
        return self


def judged(gates: Sequence[DeviceGate]) -> tuple[str, bool]:
    """Returns what some gates come to, in words, and whether they are reached: none failed, and there are some."""
    failed = [f"{gate.name}: {gate.detail}" for gate in gates if gate.passed is False]
    open_ = [f"{gate.name} ({gate.detail})" for gate in gates if gate.passed is None]
    if failed or not gates:
        return "; ".join(failed) or "none is on record", False
    return f"none failed; not examined: {', '.join(open_)}" if open_ else "all passed", True


class DeviceSamples(DevicePart):
    """The timed runs, in ms; percentiles stand beside them, and are derived again.

    `runs` counts them; of very many every so many is kept, and `runs_timed` counts all. `block_samples`: how many are of each turn.
    """

    samples_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1)]
    runs: Count | None = Field(None, exclude_if=lambda value: value is None)
    runs_timed: Count | None = Field(None, exclude_if=lambda value: value is None)
    block_samples: tuple[Count, ...] | None = Field(None, exclude_if=lambda value: value is None)
    all_runs_ns: TimeCounts | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        kept = len(self.samples_ms)
        if self.runs not in (None, kept):
            raise ValueError(f"runs: it is {self.runs}, and samples_ms has {kept}")
        if self.runs_timed is not None and self.runs_timed < kept:
            raise ValueError(f"runs_timed: it is {self.runs_timed}, and samples_ms has {kept}")
        if self.block_samples is not None and sum(self.block_samples) != kept:
            raise ValueError(f"block_samples: they come to {sum(self.block_samples)}, and samples_ms has {kept}")
        if self.all_runs_ns is not None:
            self._of_all_runs(self.all_runs_ns)
        return self

    def _of_all_runs(self, found: TimeCounts) -> None:
        """Refuses counts of other runs than those of which samples were kept."""
        if self.runs_timed not in (None, found.runs):
            raise ValueError(f"all_runs_ns: it counts {found.runs} runs, and runs_timed is {self.runs_timed}")
        for sample in self.samples_ms:
            place = bisect_left(found.values, sample * 1e6)
            if not any(abs(ns - sample * 1e6) <= 1e-6 * ns for ns in found.values[max(place - 1, 0) : place + 1]):
                raise ValueError(f"samples_ms: {sample} ms is not among the times of all_runs_ns")


class DeviceRuntime(DevicePart):
    """What executed a model."""

    name: str | None = Field(None, exclude_if=lambda value: value is None)
    version: str | None = Field(None, exclude_if=lambda value: value is None)


class LayerTime(DevicePart):
    """What one layer takes, in ms, under the names that trtexec gives it; `percentage` is its part of all layers."""

    name: str
    operator: str = Field("", exclude_if=lambda value: not value)
    average_ms: Annotated[float, Field(ge=0)] | None = Field(None, alias="averageMs", exclude_if=lambda value: value is None)
    median_ms: Annotated[float, Field(ge=0)] | None = Field(None, alias="medianMs", exclude_if=lambda value: value is None)
    percentage: Annotated[float, Field(ge=0)] | None = Field(None, exclude_if=lambda value: value is None)


class DeviceModel(DevicePart):
    """One form in one runtime: its file, its role in the folder, its hash, its gates and its runs.

    `latency` is absent where it did not run, and `fault` says why. The role of a network in C is the name of its form, and that of the file
    that certifies its own input is `certifying`. `deployed` is false for an ONNX file in another runtime than the target's, which is
    measured for comparison and judged by nothing.
    """

    file: str
    role: str
    onnx_sha256: str = Field("", exclude_if=lambda value: not value)
    source_sha256: str = Field("", exclude_if=lambda value: not value)
    gates: tuple[DeviceGate, ...]
    latency: DeviceSamples | None = Field(None, exclude_if=lambda value: value is None)
    runtime: DeviceRuntime | None = Field(None, exclude_if=lambda value: value is None)
    settings: Conditions = Field(default_factory=dict, exclude_if=lambda value: not value)
    deployed: bool = Field(True, exclude_if=lambda value: value)
    fault: str = Field("", exclude_if=lambda value: not value)
    layer_times: tuple[LayerTime, ...] | None = Field(None, exclude_if=lambda value: value is None)
    noise: Noise | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def sha256(self) -> str:
        """The hash of its file, whichever kind that is."""
        return self.onnx_sha256 or self.source_sha256

    def measured(self, machine: Conditions) -> Latency | None:
        """Returns its latency, derived again from the raw samples; None where it did not run."""
        if self.latency is None:
            return None
        told = self.runtime or DeviceRuntime()
        runs = self.latency.runs_timed or len(self.latency.samples_ms)
        own: Conditions = {"model": self.file, "runtime": told.name, "runtime_version": told.version, "runs_timed": runs}
        if self.latency.block_samples is not None:
            own[BLOCK_SAMPLES] = self.latency.block_samples
        return Latency(
            samples_ms=self.latency.samples_ms,
            settings=self.settings | own,
            machine=machine,
            noise=self.noise,
            all_runs_ns=self.latency.all_runs_ns,
        )


class DeviceResults(Document):
    """What one run of the agent measured; `models` are those of the folder in the target's runtime, `further` everything else.

    `complete` is false for what a run that was cut short had measured.
    """

    model_config = ConfigDict(extra="allow")

    kind: Literal["vsparse-device-results"]
    target: str
    device: Conditions
    models: tuple[DeviceModel, ...]
    further: tuple[DeviceModel, ...] = Field((), exclude_if=lambda value: not value)
    gates: tuple[DeviceGate, ...]
    manifest_sha256: str
    passed: bool
    runtime: DeviceRuntime | None = Field(None, exclude_if=lambda value: value is None)
    complete: bool = Field(True, exclude_if=lambda value: value)

    @property
    def measurements(self) -> tuple[DeviceModel, ...]:
        """Every form in every runtime: the models in the target's own first."""
        return (*self.models, *self.further)

    @property
    def contradiction(self) -> str:
        """What `passed` says other than the gates; empty where they agree."""
        if self.passed is not bool(self.failed):
            return ""
        said = f"{self.failed[0].name} failed ({self.failed[0].detail})" if self.failed else "no gate failed"
        return f"passed: it is {str(self.passed).lower()}, and {said}"

    @property
    def every_gate(self) -> tuple[DeviceGate, ...]:
        """All gates that count, those of the models first: whatever they call themselves, `models` and C source are deployed."""
        counted = (*self.models, *(one for one in self.further if one.deployed or one.source_sha256))
        return (*(gate for model in counted for gate in model.gates), *self.gates)

    @property
    def failed(self) -> tuple[DeviceGate, ...]:
        """The gates that were not reached, those of the models first."""
        return tuple(gate for gate in self.every_gate if gate.passed is False)

    @property
    def ratio(self) -> float | None:
        """Median of packed over median of dense; None where one of them was not timed, or took no time that a ratio could be taken of."""
        found = self.latencies()
        ratio = found["packed"].p50 / found["dense"].p50 if {"packed", "dense"} <= found.keys() and found["dense"].p50 else None
        return ratio if ratio is not None and isfinite(ratio) else None

    def latencies(self) -> dict[str, Latency]:
        """Returns the latency of each model by its role, derived again from the raw samples."""
        found: dict[str, Latency] = {}
        for model in self.models:
            latency = model.model_copy(update={"runtime": model.runtime or self.runtime}).measured(self.device)
            if latency is not None:
                found[model.role] = latency
        return found
